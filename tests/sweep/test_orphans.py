import time

import pytest

from kdscale.sweep.placement import Orphans

pytestmark = pytest.mark.slow


@pytest.fixture
def place(ray_cluster):
    """A function that makes a placement group with these resources: its id."""
    from ray.util.placement_group import placement_group, remove_placement_group

    made = []

    def make(resources):
        made.append(placement_group([resources]))
        assert made[-1].wait(30)
        return made[-1]

    yield make
    for one in made:
        remove_placement_group(one)


def state(one):
    from ray.util import placement_group_table

    return placement_group_table(one)["state"]


def test_a_place_without_an_actor_is_freed_when_it_was_so_for_long(place):
    empty = place({"CPU": 0.3})
    orphans = Orphans(after_s=0.5)
    assert orphans.look() == [] and state(empty) == "CREATED"
    time.sleep(0.6)
    assert orphans.look() == [empty.id.hex()]
    assert state(empty) == "REMOVED"
    assert orphans.look() == []


def test_a_place_with_an_actor_stays_and_its_time_begins_when_that_goes(ray_cluster, place):
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Worker:
        def here(self):
            return True

    one = place({"CPU": 0.3})
    strategy = PlacementGroupSchedulingStrategy(one)
    worker = ray_cluster.remote(Worker).options(num_cpus=0.1, scheduling_strategy=strategy).remote()
    assert ray_cluster.get(worker.here.remote())
    orphans = Orphans(after_s=1.0)
    for _ in range(3):
        assert orphans.look() == []
        time.sleep(0.6)
    ray_cluster.kill(worker)
    deadline = time.monotonic() + 30
    freed = []
    while not freed and time.monotonic() < deadline:
        time.sleep(0.2)
        freed = orphans.look()
    assert freed == [one.id.hex()]


def test_a_place_that_holds_no_processor_is_tunes_own(ray_cluster, place):
    here = next(name for name in ray_cluster.cluster_resources() if name.startswith("node:"))
    one = place({here: 0.001})
    orphans = Orphans(after_s=0.0)
    assert orphans.look() == orphans.look() == [] and state(one) == "CREATED"
