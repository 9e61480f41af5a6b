"""What a device does a second: a table of GPUs from their makers' sheets, and this machine as
`kdscale plan --calibrate` has measured it."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError, nearest

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Compute:
    """A second of one device, in a forward pass or in a training step (forward and backward).

    flops: of matrix products, where only they counted; elements: values written beside them, the
    same; both add up (`seconds`). In a training step both are those of the forward pass alone.
    """

    flops: float
    elements: float

    def seconds(self, flops: float, elements: float) -> float:
        return flops / self.flops + elements / self.elements


@dataclass(frozen=True)
class Rates:
    """Of one device, and of the machine around it.

    parameters: updated a second by the optimizer; lm: how many times longer a step of the language
    model is than the teacher's forward and the student's training in it; link: bytes/s between
    devices; memory: bytes. Of one core: characters a second, or for BM25's search passages.
    *_start: seconds. measured: by --calibrate, or assumed.
    """

    name: str
    measured: bool
    forward: Compute
    training: Compute
    parameters: float
    lm: float
    memory: float
    link: float
    cores: int
    clean_chars: float
    tokenise_chars: float
    index_chars: float
    search_passages: float
    one_thread: float  # of one thread's computing, the share of the device's
    ray_start: float
    actor_start: float
    training_start: float


@dataclass(frozen=True)
class Gpu:
    """Of a maker's sheet, dense: peak FLOP/s by precision, bytes, bytes/s."""

    bf16: float
    fp32: float
    memory: float
    bandwidth: float


T, GB = 1e12, 1e9
# NVIDIA's data sheets. fp32 without TF32, as torch computes by default; T4 and V100 have no bf16,
# theirs is fp16's.
GPUS = {
    "t4": Gpu(65 * T, 8.1 * T, 16 * GB, 320 * GB),
    "v100": Gpu(125 * T, 15.7 * T, 32 * GB, 900 * GB),
    "l4": Gpu(121 * T, 30.3 * T, 24 * GB, 300 * GB),
    "a10g": Gpu(70 * T, 31.5 * T, 24 * GB, 600 * GB),
    "l40s": Gpu(362 * T, 91.6 * T, 48 * GB, 864 * GB),
    "a100": Gpu(312 * T, 19.5 * T, 80 * GB, 2_039 * GB),
    "h100": Gpu(989 * T, 67 * T, 80 * GB, 3_350 * GB),
    "h200": Gpu(989 * T, 67 * T, 141 * GB, 4_800 * GB),
}
# Assumed, not measured: the share of a peak that encoders of this size reach, the bytes of memory
# traffic a value written (bf16, read and written, fused by half), and AdamW's a parameter.
UTILISATION = {"forward": 0.40, "training": 0.35}
ELEMENT_BYTES, PARAMETER_BYTES = 4.0, 28.0
LINK = 10 * GB  # bytes/s between GPUs, as of a 100 Gbit network

# One core, where this machine was not measured. Computing is as the quickstart's stages and
# latencies have it (benchmarks/results/quickstart.json, two idle cores of an AMD EPYC).
ASSUMED = Rates(
    "cpu", False, Compute(8e10, 1.7e9), Compute(2.1e10, 4.5e8), 1e8, 1.3, 8 * GB, 1 * GB, 1,
    8e6, 2e6, 3e6, 3e7, 1.0, 5.0, 10.0, 25.0,
)  # fmt: skip


def gpu_rates(name: str, precision: str, machine: Rates) -> Rates:
    """A GPU of the table, in a machine whose cores are those of `machine`.

    Raises KdscaleError for one that the table has not.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise KdscaleError(f"--gpu {name}: not in the table{nearest(name.lower(), GPUS)}")
    peak = gpu.bf16 if precision == "bf16" else gpu.fp32
    elements = gpu.bandwidth / ELEMENT_BYTES
    return replace(
        machine,
        name=name.lower(),
        measured=False,
        forward=Compute(UTILISATION["forward"] * peak, elements),
        # The backward pass computes twice what the forward does.
        training=Compute(UTILISATION["training"] * peak / 3, elements / 3),
        parameters=gpu.bandwidth / PARAMETER_BYTES,
        lm=ASSUMED.lm,
        memory=gpu.memory,
        link=LINK,
    )


def calibration_file() -> Path:
    from kdscale.store.fetch import cache_root

    return cache_root() / CALIBRATION


def machine() -> dict[str, Any]:
    """What a calibration is good for."""
    import torch

    from kdscale.evaluation.latency import hardware

    told = hardware()
    return {**told, "threads": torch.get_num_threads(), "python": platform.python_version()}


def save_calibration(rates: Rates) -> Path:
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rates": asdict(rates)}, indent=1) + "\n")
    return path


def load_calibration() -> Rates | None:
    """What was measured on this machine; None where nothing was, or it was another one.

    Raises KdscaleError for a file that is damaged.
    """
    path = calibration_file()
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["machine"] != machine():
            return None
        values = told["rates"]
        if set(values) != {f.name for f in fields(Rates)}:
            return None  # of another release
        computes = {name: Compute(**values[name]) for name in ("forward", "training")}
        return Rates(**{**values, **computes})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise KdscaleError(
            f"{path} is damaged ({type(error).__name__}); run kdscale plan --calibrate"
        ) from None
