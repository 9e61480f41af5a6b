import numpy as np
import pytest

from kdscale.training.batches import BatchOrder, count_micro, rank_share, split_micro


def test_every_item_once_an_epoch_but_for_the_tail():
    order = BatchOrder(np.arange(103) % 7, batch_size=10, seed=1)
    assert order.steps_per_epoch == 10
    seen = np.concatenate([order.batch(step)[1] for step in range(10)])
    assert len(set(seen.tolist())) == 100


def test_a_step_is_the_same_wherever_a_run_begins():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    whole = [BatchOrder(lengths, 8, 5).batch(s) for s in range(24)]
    resumed = BatchOrder(lengths, 8, 5)
    for step in range(13, 24):
        epoch, items = resumed.batch(step)
        assert epoch == whole[step][0] == step // 8
        assert items.tolist() == whole[step][1].tolist()


def test_epochs_and_seeds_differ():
    lengths = np.ones(64)
    a, b = BatchOrder(lengths, 8, 5), BatchOrder(lengths, 8, 6)
    assert a.epoch_batches(0).tolist() != a.epoch_batches(1).tolist()
    assert a.epoch_batches(0).tolist() != b.epoch_batches(0).tolist()


def test_like_lengths_are_together():
    lengths = np.random.default_rng(0).integers(1, 1000, 320)
    batches = BatchOrder(lengths, 10, 0).epoch_batches(0)
    assert np.ptp(lengths[batches], axis=1).mean() < 0.1 * np.ptp(lengths)


def test_fewer_items_than_a_batch_make_one_batch():
    order = BatchOrder(np.ones(3), 8, 0)
    assert order.steps_per_epoch == 1
    assert sorted(order.batch(0)[1].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_a_batch_without_loss_or_double(world):
    items = np.arange(100, 116)
    shares = [rank_share(items, r, world) for r in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == items.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_micro_batches_keep_the_budget_and_every_item():
    lengths = np.array([10, 20, 30, 40, 500, 60, 70])
    micros = split_micro(np.arange(7), lengths, budget=120, parts=1)
    assert sorted(np.concatenate(micros).tolist()) == list(range(7))
    for micro in micros:
        assert len(micro) * lengths[micro].max() <= 120 or len(micro) == 1


def test_every_rank_has_as_many_micro_batches():
    lengths = np.array([500, 10, 500, 10, 500])
    items = np.arange(5)
    parts = count_micro(items, lengths, budget=500, world=2)
    for rank in range(2):
        micros = split_micro(rank_share(items, rank, 2), lengths, 500, parts)
        assert len(micros) == parts
        assert sorted(np.concatenate(micros).tolist()) == rank_share(items, rank, 2).tolist()


def test_a_share_of_nothing_gives_empty_micro_batches():
    micros = split_micro(np.array([], dtype=int), np.ones(3), 10, parts=2)
    assert [len(m) for m in micros] == [0, 0]
