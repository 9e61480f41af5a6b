import io
import json
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdscale.cli import main
from kdscale.config import BeirSource, Cluster, DocstringsSource, Storage, Transfer
from kdscale.doctor import Check, experiment, machine, run
from kdscale.experiment.load import load_config
from kdscale.progress import Reporter
from tests.worlds.world import make_config


@pytest.fixture
def reporter():
    return Reporter(Console(file=io.StringIO(), width=200))


@pytest.fixture
def config(tmp_path):
    return load_config(make_config(tmp_path))


def by_name(checks):
    return {check.name: check for check in checks}


def test_a_good_machine_and_config(config, reporter):
    checks = by_name(run.run_checks(config, reporter, ray=False))
    assert list(checks) == [
        "python", "packages", "compute", "memory", "shm", "disk", "deepspeed", "store", "source",
        "queries", "measures", "model", "training",
    ]  # fmt: skip
    assert [c.name for c in checks.values() if c.status == "problem"] == []
    assert checks["source"].detail == "beir, splits train, dev, test"
    assert "the primary one: nDCG@10 on test" in checks["measures"].detail
    assert "bert, weights in" in checks["model"].detail
    shown = reporter.console.file.getvalue().splitlines()
    assert len([line for line in shown if line.startswith("ok ")]) >= 7
    assert "0 to mend (problem)" in shown[-1]


def test_what_is_wrong_with_a_config_is_told_with_its_fix(config, reporter, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "check_deepspeed", lambda cluster: Check("", "ok", ""))
    (tmp_path / "file").write_text("not a folder")
    config = replace(
        config,
        storage=Storage(str(tmp_path / "file" / "store")),
        evaluate=replace(config.evaluate, measures=["P@0"]),
    )
    (tmp_path / "encoder" / "model.safetensors").unlink()
    (tmp_path / "beir" / "corpus.jsonl").unlink()
    checks = by_name(run.run_checks(config, reporter, ray=False))
    assert checks["queries"].status == "warning"  # for the same reason as the source
    problems = {n: c for n, c in checks.items() if c.status == "problem"}
    assert problems.keys() == {"store", "source", "measures", "model", "training"}
    assert "'P@0' cannot be computed" in problems["measures"].detail
    assert "cannot write to the store" in problems["store"].detail
    assert "corpus.jsonl" in problems["source"].detail
    assert "has no model.safetensors" in problems["model"].detail
    assert "5 to mend (problem)" in reporter.console.file.getvalue()
    assert all(check.fix for check in problems.values())


def test_packages_that_are_absent_or_of_another_version(monkeypatch):
    asked = ["numpy>=999", "kdscale-no-such-package>=2", "rich", 'pytest>=999; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    check = machine.check_packages()
    assert check.status == "problem"
    assert f"numpy: {metadata.version('numpy')}, asked for >=999" in check.detail
    assert "kdscale-no-such-package: not installed" in check.detail
    assert check.fix == "pip install 'numpy>=999' 'kdscale-no-such-package>=2'"


def test_gpus_that_are_not_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check = machine.check_compute(Cluster(gpus_per_worker=1))
    assert check.status == "problem" and "asks for GPUs" in check.detail
    # The GPUs of a cluster that is somewhere else are not this machine's.
    assert (
        machine.check_compute(Cluster(address="ray://head", gpus_per_worker=1)).status != "problem"
    )


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
@pytest.mark.parametrize("has", [True, False])
def test_matrix_units_of_the_cpu_are_told(monkeypatch, has, unit):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: has}, raising=False)
    assert ("bf16" in machine.check_compute(Cluster()).detail) is has


def test_little_room_is_a_warning_and_none_a_problem(monkeypatch, tmp_path):
    folder = tmp_path / "not" / "yet" / "there"
    assert str(tmp_path) in machine.check_disk(folder).detail
    monkeypatch.setattr(machine, "DISK_GIB", 1e9)
    assert machine.check_disk(folder).status == "warning"
    monkeypatch.setattr(machine, "MEMORY_GIB", 1e9)
    assert machine.check_memory().status == "warning"


def test_a_small_dev_shm_is_told(monkeypatch):
    import psutil

    assert "GiB free in /dev/shm" in machine.check_shared_memory(Cluster()).detail
    docker = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: docker)
    # What is free in a container, as Ray counts it, not on the host.
    monkeypatch.setattr(machine, "memory", lambda: (24 * 2**30, 20 * 2**30))
    check = machine.check_shared_memory(Cluster())
    assert check.status == "warning" and "Ray asks for 6.0" in check.detail
    assert "--shm-size=7g" in check.fix
    # Of a large machine Ray takes its share of memory only as far as /dev/shm goes.
    docker.free = 11 * 10**9
    monkeypatch.setattr(machine, "memory", lambda: (2**40, 2**40))
    assert machine.check_shared_memory(Cluster()).status == "ok"
    assert machine.check_shared_memory(Cluster(address="ray://head:10001")).status == "ok"


def test_training_queries_among_those_of_another_split_or_transfer_are_told(config, tmp_path):
    check = experiment.check_queries(config)
    assert (check.status, check.detail) == ("ok", "train 60, dev 10, test 20")
    beir = tmp_path / "beir"
    rows = [json.loads(line) for line in (beir / "queries.jsonl").read_text().splitlines()]
    rows[60]["text"] = rows[0]["text"].upper() + " ?"  # of dev
    (beir / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = BeirSource(path=str(beir), splits={"all of it": "train"})
    config.transfer["other"] = Transfer(source, split="all of it")
    check = experiment.check_queries(config)
    assert check.status == "warning"
    assert "1 in dev, 60 in other/all of it" in check.detail and "prepare.leakage" in check.fix
    config = replace(config, prepare=replace(config.prepare, leakage="drop"))
    assert "another split too: 60 in other" in experiment.check_queries(config).detail
    config.transfer.clear()
    assert experiment.check_queries(config).status == "ok"
    config = replace(config, source=DocstringsSource(packages=["rich"]))
    assert "docstrings are counted when" in experiment.check_queries(config).detail


def test_a_module_that_breaks_on_import_is_told_by_its_last_line(tmp_path, monkeypatch):
    (tmp_path / "broken_engine.py").write_text("raise OSError('no CUDA_HOME')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert machine._import_failure("broken_engine") == "OSError: no CUDA_HOME"
    assert machine._import_failure("json") is None


def test_a_check_that_breaks_does_not_end_the_doctor(reporter, monkeypatch):
    def broken():
        raise ImportError("libtorch.so is damaged\nand more")

    monkeypatch.setattr(machine, "check_memory", broken)
    monkeypatch.setattr(machine, "check_deepspeed", lambda cluster: Check("", "ok", ""))
    checks = by_name(run.run_checks(None, reporter, ray=False))
    assert checks["memory"].status == "problem"
    assert checks["memory"].detail == "libtorch.so is damaged"
    assert "model" in checks


def test_the_command_fails_where_there_is_a_problem(monkeypatch, capsys):
    def found(config, reporter):
        return [Check("disk", "problem", "full", "free some")]

    monkeypatch.setattr(run, "run_checks", found)
    assert main(["doctor"]) == 1
    monkeypatch.setattr(run, "run_checks", lambda *_: [Check("disk", "warning", "")])
    assert main(["doctor"]) == 0


@pytest.mark.slow
def test_ray_runs_a_task():
    check = machine.check_ray(Cluster())
    assert check.status == "ok" and "ran a task" in check.detail
