#!/bin/sh
# DeepSpeed 0.19.8, ZeRO 1 and 2: of an optimizer with several parameter groups,
# deepspeed.utils.safe_get_full_optimizer_state reads the moments of the first group alone.
#
# One would guess that it gives the moment of any trained parameter after a step: so its docstring says.
# Seen: with the usual two groups (weights that decay; biases and norms that do not) it raises ValueError
# "exp_avg not found in optimizer state fragment" for every parameter of the second group, after any
# number of steps. The parameters are linked to their moments once, after the first group's part of the
# first step, when the second group has no moments yet. With one group all of them are there, and
# safe_set_full_optimizer_state writes them. So a checkpoint that is made of the public getters works in
# a test with one group, and fails with the optimizer of a real training.
#
# It ends with 0 while that is so, and with 1 if it changes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 deepspeed==0.19.8
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
import os

os.environ.update(
    RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29617",
    DS_ACCELERATOR="cpu",
)
import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops import __compatible_ops__
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state

__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for minutes, and not needed here
dist.init_process_group("gloo")


def found(stage: int, groups: int) -> list[str]:
    """Of each parameter, whether its first moment can be read after three steps."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    parameters = list(module.parameters())
    parts = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]]
    given = [{"params": part} for part in parts] if groups == 2 else parameters
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.AdamW(given, lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    for _ in range(3):
        engine.backward(engine(torch.randn(5, 4)).square().mean())
        engine.step()
    said = []
    for name, parameter in module.named_parameters():
        try:
            moment = safe_get_full_optimizer_state(parameter, "exp_avg")
            safe_set_full_optimizer_state(parameter, moment, "exp_avg")
            said.append(f"{name} found")
        except ValueError as error:
            said.append(f"{name} {error}")
    return said


missing = "exp_avg not found in optimizer state fragment"
for stage in (1, 2):
    one, two = found(stage, 1), found(stage, 2)
    print("deepspeed", deepspeed.__version__, "stage", stage, one, two)
    assert one == [f"{n} found" for n in ("0.weight", "0.bias", "1.weight", "1.bias")], "changed"
    assert two == ["0.weight found", f"0.bias {missing}", "1.weight found", f"1.bias {missing}"], (
        "changed"
    )
PYTHON
