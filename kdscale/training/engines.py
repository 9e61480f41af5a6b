"""The two engines behind one small interface: DeepSpeed (under Ray Train) and plain torch.

The loop talks to an engine only. A loss is the sum over a rank's items divided by the items of the
whole step and multiplied by the number of ranks, so that the mean of gradients over ranks is the
gradient of the mean over items: the number of workers does not change the result.

Here too is the notice that a node is about to be taken away (`Notice`). Ray Train asks Ray's
control service every five seconds which nodes are being drained: a spot instance's notice, a
scale-down, `ray drain-node`. A node that goes without a notice is an ordinary failure, and costs
the work since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol

import torch
from torch import nn

from kdscale.config import Train
from kdscale.training import optimizer_state
from kdscale.training.batches import Batch


class Engine(Protocol):
    """What the loop needs: `module(batch)`, gradients, an update."""

    rank: int
    world: int
    device: torch.device

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]: ...
    def backward(self, loss: torch.Tensor, last: bool) -> None: ...
    def step(self, lr: float) -> float | torch.Tensor:
        """Clip, update, clear gradients; returns the gradient norm before clipping, on the device
        where that spares the wait for it."""
        ...

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a small vector."""
        ...

    def agree(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        ...

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """The whole state by parameter name (`kdscale.training.optimizer_state`), on every rank
        that calls; all must."""
        ...

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse; the module's weights are restored before."""
        ...


# As in RoBERTa (arXiv 1907.11692). A ranker's gradients are small for the first tens of steps and
# then grow tenfold within a few: with the usual 0.999 the second moment is then still that of the
# small ones, and a step can be far too long.
BETAS = (0.9, 0.98)
EPS = 1e-6


def make_optimizer(module: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW without weight decay on biases and norms (every tensor of one dimension).

    Fused: one pass over a parameter and its moments. A small student is nearly all embedding
    table, and the usual dozen passes over that cost a quarter of its training step.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=train.lr,
        betas=BETAS,
        eps=EPS,
        fused=True,
    )


def clip(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale all gradients to a norm of at most max_norm (0: leave them); returns the norm."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))


class TorchEngine:
    """One process, no Ray, no DeepSpeed."""

    rank, world = 0, 1

    def __init__(self, module: nn.Module, train: Train, device: torch.device):
        self.device = device
        self._module = module.to(device)
        self.optimizer = make_optimizer(module, train)
        self._max_grad_norm = train.max_grad_norm
        self._bf16 = train.precision == "bf16"

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with (
            torch.autocast(self.device.type, torch.bfloat16)
            if self._bf16
            else contextlib.nullcontext()
        ):
            return self._module(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> float | torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = clip(self.optimizer, self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def agree(self, value: int) -> int:
        return value

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        return optimizer_state.take(self._module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        optimizer_state.put(self._module, self.optimizer, state)


class DeepSpeedEngine:
    """DeepSpeed over an initialised process group (Ray Train sets it up)."""

    def __init__(self, module: nn.Module, train: Train, device: torch.device):
        import deepspeed
        import torch.distributed as dist
        from deepspeed.ops import __compatible_ops__

        if device.type == "cpu":
            # DeepSpeed would compile a shared-memory all-reduce that training does not use: a
            # minute, a compiler, and after a kill a lock that hangs the next run.
            __compatible_ops__["deepspeed_shm_comm"] = False
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = device
        self._zero_stage = train.zero_stage
        self._max_grad_norm = train.max_grad_norm
        self._module = module.to(device)
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=self._module,
            # A torch optimizer is passed in: one named in the config would be compiled.
            optimizer=make_optimizer(module, train),
            config=deepspeed_config(train),
            dist_init_required=False,
        )

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self._engine(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        self._engine.backward(loss)

    def step(self, lr: float) -> float | torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._zero_stage == 0:
            # Without ZeRO every rank has the whole reduced gradient, and DeepSpeed clips it
            # without telling its norm: so it is clipped here.
            norm = clip(self.optimizer, self._max_grad_norm)
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def agree(self, value: int) -> int:
        import torch.distributed as dist

        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared)

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        take = optimizer_state.take_zero if self._zero_stage else optimizer_state.take
        return take(self._module, self.optimizer)

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        put = optimizer_state.put_zero if self._zero_stage else optimizer_state.put
        put(self._module, self.optimizer, state)


def deepspeed_config(train: Train) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loop cuts its own micro-batches
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm if train.zero_stage else 0.0,
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


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
