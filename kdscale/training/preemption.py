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

    True once. Training goes on afterwards, and Ray Train restarts the run on other nodes when that
    one is gone, unless it is finished by then.
    """

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._given = False

    def __call__(self, engine: Engine) -> bool:
        import ray.train

        # Ray's answer is a barrier of all workers. With the node gone it would not end before the
        # notice's deadline, while a gradient's all-reduce fails at once: so nobody asks again.
        if self._given:
            return False
        # Milliseconds, too many for every step: rank 0's clock says when to ask.
        if not engine.agree(int(time.monotonic() - self._asked > ASK_EVERY_S)):
            return False
        self._asked = time.monotonic()
        self._given = ray.train.get_preemption_info() is not None
        return self._given
