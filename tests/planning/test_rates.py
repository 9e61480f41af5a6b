"""Rates of GPUs, and those of this machine, measured by a calibration."""

import dataclasses
import json
import math

import pytest

from kdscale.errors import KdscaleError
from kdscale.planning import rates
from kdscale.planning.rates import ASSUMED, GPUS, gpu_rates


def test_a_faster_gpu_is_faster_and_lower_precision_too():
    a100, h100 = (gpu_rates(name, "bf16", ASSUMED) for name in ("a100", "H100"))
    assert h100.forward.flops > a100.forward.flops
    assert gpu_rates("a100", "fp32", ASSUMED).forward.flops < a100.forward.flops
    assert a100.forward.flops == pytest.approx(0.4 * 312e12) and not a100.measured
    assert all(10e9 < gpu.memory < 200e9 and gpu.bf16 > gpu.fp32 for gpu in GPUS.values())
    with pytest.raises(KdscaleError, match=r"--gpu h10: .*did you mean h100"):
        gpu_rates("h10", "bf16", ASSUMED)


def test_a_calibration_is_kept_for_this_machine_alone(cache):
    assert rates.load_calibration() is None
    measured = dataclasses.replace(ASSUMED, measured=True, cores=3)
    path = rates.save_calibration(measured)
    assert path == cache / "calibration.json" and rates.load_calibration() == measured
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "machine": {**told["machine"], "cpu": "another"}}))
    assert rates.load_calibration() is None
    path.write_text(json.dumps({**told, "rates": {"name": "old"}}))
    assert rates.load_calibration() is None
    path.write_text("{")
    with pytest.raises(KdscaleError, match=r"calibration\.json is damaged"):
        rates.load_calibration()


@pytest.mark.slow
def test_calibration_measures_this_machine(cache, capsys):
    """All but the start of Ray's workers, which takes most of its time."""
    from kdscale.planning.calibrate import calibrate
    from kdscale.progress import Reporter

    found = calibrate(Reporter(), ray=False)
    assert found.measured
    for name, value in dataclasses.asdict(found).items():
        numbers = value.values() if isinstance(value, dict) else [value]
        assert all(math.isfinite(n) and n > 0 for n in numbers if not isinstance(n, str)), name
