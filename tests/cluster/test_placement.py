import pytest

from kdscale.cluster.placement import Node, Plan, capacity, describe, even_share, fits

SPOT = {"market": "spot"}


@pytest.mark.parametrize(
    ("plan", "nodes", "expected"),
    [
        (Plan(1, 4), [Node(2), Node(2)], False),  # enough in all, nowhere at once
        (Plan(1, 4), [Node(2), Node(4.2)], True),
        (Plan(2, 2), [Node(2), Node(2)], False),  # nothing left for Ray's own tasks
        (Plan(2, 2), [Node(2), Node(2), Node(1)], True),  # they run on the third
        (Plan(2, 0.9), [Node(2)], True),  # 1.8 and 0.2 are 2, whatever floats say
        (Plan(3, 0.9), [Node(2)], False),
        (Plan(2, 1, gpus=1), [Node(16), Node(4, 1)], False),  # GPUs count node by node too
        (Plan(2, 1, gpus=1), [Node(4, 1), Node(4, 1)], True),
        (Plan(4, 1, gpus=0.5), [Node(8, 2)], True),
        (Plan(1, 1, labels=SPOT), [Node(8)], False),
        (Plan(1, 1, labels=SPOT), [Node(8), Node(1, labels={**SPOT, "zone": "a"})], True),
        (Plan(1, 1, labels=SPOT), [Node(8, labels={"market": "on-demand"})], False),
        (Plan(1, 1), [], False),
    ],
)
def test_a_plan_fits_nodes_not_sums(plan, nodes, expected):
    assert fits(plan, nodes) is expected


def test_a_node_holds_what_fits_beside_what_is_taken():
    assert capacity(Node(4, 1), Plan(9, 1)) == 4
    assert capacity(Node(4, 1), Plan(9, 1), taken_cpus=0.2) == 3
    assert capacity(Node(4, 1), Plan(9, 1, gpus=1)) == 1
    assert capacity(Node(0.1), Plan(9, 1), taken_cpus=0.2) == 0


@pytest.mark.parametrize(
    ("count", "gpus", "nodes", "expected"),
    [
        (1, 0, [Node(2)], 1.8),
        (2, 0, [Node(2)], 0.9),
        (1, 0, [Node(2), Node(2)], 2.0),  # not 3.8: no node has it
        (2, 0, [Node(2), Node(2)], 1.8),
        (3, 0, [Node(8), Node(2)], 2.6),  # all three on the large node
        (2, 1, [Node(32), Node(4, 1), Node(4, 1)], 4.0),
        (50, 0, [Node(2)], 0.1),  # does not fit, and `fits` says so
        (1, 0, [], 0.1),
    ],
)
def test_an_even_share_is_one_that_fits(count, gpus, nodes, expected):
    assert even_share(Plan(count, 0, gpus), nodes) == pytest.approx(expected)


def test_nodes_in_words():
    nodes = [Node(2), Node(4, 1, {"id": "x", **SPOT}), Node(2), Node(1)]
    assert describe(nodes) == "1 node of 4 CPUs and 1 GPU, 2 nodes of 2 CPUs, 1 node of 1 CPU"
    assert describe(nodes[1:2], SPOT) == "1 node of 4 CPUs and 1 GPU with market=spot"
    assert describe([]) == "no nodes"
