"""Notices that a node is about to be taken away.

Ray Train asks Ray's control service every five seconds which nodes are being drained (a spot
instance's notice, a scale-down, `ray drain-node`) and tells the workers; Ray learns of it from
whoever drains the node, on Kubernetes and AWS the autoscaler or a termination handler. A node
that goes without a word is an ordinary failure, and costs the work since the last checkpoint.
"""

from __future__ import annotations

import time

from kdscale.training.engines import Engine

ASK_EVERY_S = 2.0


class Notice:
    """Called at the end of every step by every rank: is a checkpoint wanted at once?

    True once for each node that is about to go. Training goes on afterwards: Ray Train restarts
    the run without that node when it is gone, or has finished it before.
    """

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._seen: set[str] = set()

    def __call__(self, engine: Engine) -> bool:
        import ray.train

        # Ray's answer is a barrier over actors, milliseconds: rank 0's clock says when to ask.
        if not engine.agree(int(time.monotonic() - self._asked > ASK_EVERY_S)):
            return False
        self._asked = time.monotonic()
        info = ray.train.get_preemption_info()
        going = set(info.preempted_node_ids) if info is not None else set()
        new = going - self._seen
        self._seen |= going
        return bool(new)
