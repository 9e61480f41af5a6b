"""How many trials run side by side."""

import pytest

from kdscale.cluster.placement import Node
from kdscale.config import Cluster
from kdscale.errors import KdscaleError
from kdscale.sweep.placement import plan_trials

TWO = [Node(2.0)]


@pytest.mark.parametrize(
    ("cluster", "nodes", "most", "expected"),
    [
        (Cluster(), TWO, 12, (2, 0.9)),  # 1.8 CPUs of workers, and room for Ray's own tasks
        (Cluster(), TWO, 1, (1, 1.8)),
        (Cluster(workers=2), TWO, 12, (1, 0.9)),
        (Cluster(cpus_per_worker=0.5), TWO, 12, (3, 0.5)),
        (Cluster(cpus_per_worker=1.5), TWO, 12, (1, 1.5)),
        (Cluster(), [Node(1.0)], 12, (1, 0.8)),
        (Cluster(workers=3, cpus_per_worker=2), [Node(4.2), Node(4.0), Node(4.0)], 9, (2, 2)),
        (Cluster(gpus_per_worker=1), [Node(16.0, 4.0)], 12, (4, 3.9)),
        (Cluster(gpus_per_worker=0.5, cpus_per_worker=1), [Node(16.0, 4.0)], 30, (8, 1)),
        (Cluster(cpus_per_worker=1, worker_labels={"market": "spot"}),
         [Node(8.0), Node(4.2, labels={"market": "spot"})], 12, (4, 1)),
        (Cluster(workers=8, engine="torch"), TWO, 12, (2, 0.9)),
    ],
)  # fmt: skip
def test_as_many_as_fit_together(cluster, nodes, most, expected):
    assert plan_trials(cluster, nodes, most) == expected


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(cpus_per_worker=2), r"a trial of the sweep needs 1 x 2 CPUs .* 1 node of 2 CPUs"),
        (Cluster(workers=20, cpus_per_worker=1), r"20 x 1 CPUs"),
        (Cluster(gpus_per_worker=1), r"and 1 GPUs"),
    ],
)
def test_one_that_does_not_fit_is_refused_with_the_numbers(cluster, message):
    with pytest.raises(KdscaleError, match=message):
        plan_trials(cluster, TWO, 12)
