"""What a container may use, by files as the kernel writes them; and for real, by taskset."""

import os
import subprocess
import sys

import pytest
import torch

from kdscale.cluster import machine
from kdscale.cluster.machine import cpus, memory

GIB = 2**30


def machine_of(root, groups, **files):
    """A root with these lines of /proc/self/cgroup, and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.fixture
def eight(monkeypatch):
    """A host of eight CPUs, all of which the process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 1),  # what is left over is Ray's own
        ("50000 100000", 1),  # never none
        ("1600000 100000", 8),  # more than there are
        ("max 100000", 8),
        ("", 8),
        ("nonsense", 8),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, eight, limit, expected):
    assert cpus(machine_of(tmp_path, ["0::/"], **{"cpu.max": limit})) == expected


@pytest.mark.parametrize(("quota", "expected"), [(300000, 3), (-1, 8), (250000, 2)])
@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_the_quota_of_version_1_counts(tmp_path, eight, quota, expected, folder):
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": 100000}
    # The path is the host's; the container sees its own group at the top.
    groups = ["4:cpu,cpuacct:/docker/0123", "3:cpuset:/docker/0123", "0::/"]
    assert cpus(machine_of(tmp_path, groups, **files)) == expected


def test_the_smallest_of_all_groups_that_a_group_lies_in_counts(tmp_path, eight):
    files = {
        "kubepods/cpu.max": "400000 100000",
        "kubepods/pod1/cpu.max": "max 100000",
        "kubepods/pod1/c/cpu.max": "600000 100000",
        "another/cpu.max": "100000 100000",
    }
    assert cpus(machine_of(tmp_path, ["0::/kubepods/pod1/c"], **files)) == 4


def test_without_control_groups_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6})
    assert cpus(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert cpus(tmp_path) == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_that_is_bound_to_one_cpu_has_one_for_everything():
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]);"
        "os.environ.pop('OMP_NUM_THREADS', None);"
        "from kdscale.cluster.machine import cpus; from kdscale.evaluation.latency import hardware;"
        "import torch; print(cpus(), hardware()['cores'], torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "1"], done.stderr


def test_the_memory_limit_of_a_container_counts(tmp_path):
    total, free = memory(tmp_path)
    files = {
        "memory.max": GIB // 2,
        "memory.current": GIB // 4,
        "memory.stat": f"anon 1\ninactive_file {GIB // 8}",  # cached files give way
    }
    here = machine_of(tmp_path / "a", ["0::/"], **files)
    assert memory(here) == (GIB // 2, GIB // 2 - GIB // 8)
    files = {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": GIB}
    unlimited = machine_of(tmp_path / "b", ["4:memory:/"], **files)
    assert memory(unlimited)[0] == total > GIB
    assert abs(memory(unlimited)[1] - free) < GIB


def test_torch_has_no_more_threads_than_cpus_unless_the_user_says_so(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(machine, "cpus", lambda: 1)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        machine.limit_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        machine.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
