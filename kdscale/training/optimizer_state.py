"""The optimizer's state by parameter name: one form for every engine and number of workers.

DeepSpeed's ZeRO 1 and 2 keep the moments of a slice of all parameters on each rank, in an order
of their own; its own checkpoints are pickles that only the same number of workers can read. Here
the slices are put together, and cut again for the workers of a resumed run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

STEP = "step"  # AdamW's count of updates, a scalar beside the moments
MOMENTS = ("exp_avg", "exp_avg_sq")


def take(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """{"parameter.entry": tensor on the CPU} of a plain torch optimizer."""
    return {
        f"{name}.{entry}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in _trained(module)
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def put(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]
) -> None:
    """The inverse of `take`."""
    optimizer.state.clear()
    parameters = dict(_trained(module))
    for name, entries in _by_parameter(state).items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # The count too: fused AdamW wants it beside the parameter.
            entry: value.to(parameter.device, copy=True)
            for entry, value in entries.items()
        }


def take_zero(module: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    """`take` for DeepSpeed's ZeRO 1 and 2. Every rank calls it and gets the whole state.

    DeepSpeed's own getter and setter (deepspeed.utils.safe_get_full_optimizer_state, 0.19) know the
    moments of the first parameter group alone, and not the count of updates:
    findings/deepspeed-zero-moments-of-later-groups.sh shows it.
    """
    import torch.distributed as dist

    state = {}
    inner = optimizer.optimizer
    for name, parameter in _trained(module):
        mapping = _mapping(parameter)
        slices = _slices(inner, mapping) if mapping is not None else {}
        for entry in MOMENTS:
            whole = torch.zeros(parameter.numel(), device=parameter.device)
            if entry in slices:
                _own(whole, mapping).copy_(slices[entry])
            dist.all_reduce(whole)  # each element is zero on all ranks but one
            state[f"{name}.{entry}"] = whole.view(parameter.shape).cpu()
        state[f"{name}.{STEP}"] = _updates(inner)
    return state


def put_zero(module: nn.Module, optimizer: Any, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `take_zero`; the module's weights are restored before.

    ZeRO updates a master copy of a rank's slice of the weights, so that is renewed as well.
    """
    optimizer.refresh_fp32_params()
    inner = optimizer.optimizer
    by_parameter = _by_parameter(state)
    for group in inner.param_groups:
        flat = group["params"][0]
        inner.state[flat] = {
            STEP: torch.zeros((), device=flat.device),
            **{entry: torch.zeros_like(flat) for entry in MOMENTS},
        }
    for name, parameter in _trained(module):
        mapping = _mapping(parameter)
        if mapping is None or name not in by_parameter:
            continue
        flat = inner.param_groups[mapping.param_group_index]["params"][0]
        inner.state[flat][STEP] = by_parameter[name][STEP].to(flat.device, copy=True)
        for entry, own in _slices(inner, mapping).items():
            whole = by_parameter[name][entry].to(flat.device)
            own.copy_(_own(whole.flatten(), mapping))


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad)


def _by_parameter(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        name, entry = key.rsplit(".", 1)
        found.setdefault(name, {})[entry] = value
    return found


def _mapping(parameter: Any) -> Any:
    """DeepSpeed's note of where a parameter is in the flat state; None on a rank that holds nothing
    of it."""
    return parameter._hp_mapping


def _slices(inner: torch.optim.Optimizer, mapping: Any) -> dict[str, torch.Tensor]:
    """Views of a parameter's moments in the flat state of this rank."""
    flat = inner.param_groups[mapping.param_group_index]["params"][0]
    address = mapping.hp_fragment_address
    return {
        entry: value.narrow(0, address.start, address.numel)
        for entry, value in inner.state[flat].items()
        if entry != STEP
    }


def _own(whole: torch.Tensor, mapping: Any) -> torch.Tensor:
    """The view of a flattened parameter that this rank holds."""
    address = mapping.lp_fragment_address
    return whole.narrow(0, address.start, address.numel)


def _updates(inner: torch.optim.Optimizer) -> torch.Tensor:
    return next(iter(inner.state.values()))[STEP].detach().cpu().clone()
