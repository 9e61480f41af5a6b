import json
import threading
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdscale.config import Cluster, ModelRef, Shape, Train, Watch
from kdscale.data.dataset import Dataset, Tokens
from kdscale.experiment.context import DATASET, TOKENS
from kdscale.experiment.settings import RandomStudent, RankerSettings
from kdscale.models.ranker import Scorer, load_ranker
from kdscale.progress import Reporter
from kdscale.store import LocalWorkspace
from kdscale.training.engines import TorchEngine
from kdscale.training.launch import run_training
from kdscale.training.loop import Hooks
from kdscale.training.tasks import train_and_export
from kdscale.training.validate import Sample
from tests.worlds.small_world import WatchWorld

SHAPE = Shape("s", layers=1, hidden=16, heads=2, intermediate=32)
# Dropout, so that a random number drawn while looking would change the weights.
TRAIN = Train(max_steps=30, batch_size=10, lr=3e-3, dropout=0.1, log_every=5, checkpoint_every=7)
TIMES = ("elapsed_s", "watch_s", "time")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return WatchWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine the threads of tiny operations wait for each other, for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _given(world, watch, **train):
    """Settings and inputs of a training."""
    settings = RankerSettings(
        start=RandomStudent(SHAPE, ModelRef(str(world.encoder))),
        losses={"lce": 1.0},
        group_size=4,
        max_queries=None,
        train=Train(**{**asdict(TRAIN), **train}),
        seed=13,
        easy_negatives=True,
        validate=watch,
    )
    return settings, {DATASET: world.dataset.ref(), TOKENS: world.tokens.ref()}


def _train(world, folder, watch, stop_at=None, **train):
    """What a run leaves. stop_at: it dies in so many of the steps that end without a checkpoint,
    and another process goes on from what it left."""
    (settings, inputs), workspace = (
        _given(world, watch, **train),
        LocalWorkspace(folder / "work"),
    )
    said, shown, asked = [], [], 0

    def notice(engine):
        nonlocal asked
        asked += 1
        if asked == stop_at:
            raise KeyboardInterrupt
        return False

    def once():
        hooks = Hooks(shown.append, said.append, notice)
        cpu = torch.device("cpu")
        train_and_export(
            settings, inputs, workspace, lambda m: TorchEngine(m, settings.train, cpu), hooks
        )

    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            once()
        # A checkpoint is published beside the next steps: on a busy machine it is not there yet.
        for thread in threading.enumerate():
            if "_publish" in thread.name:
                thread.join()
    once()
    export = workspace.fetch("export")
    return SimpleNamespace(
        path=export,
        weights=load_file(export / "model.safetensors"),
        metrics=_rows(export / "metrics.jsonl"),
        rows=_rows(export / "watch.jsonl") if watch else None,
        facts=json.loads((export / "facts.json").read_text()),
        random=torch.get_rng_state(),
        said=said,
        shown=shown,
    )


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _timeless(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def _same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _ndcg(world, path, split, qids):
    """nDCG@10 of an exported ranker, by hand: one passage of each query is relevant."""
    dataset, tokens = Dataset(world.dataset.path), Tokens(world.tokens.path)
    scorer = Scorer(load_ranker(path), tokens.encoder())
    relevant = {row["qid"]: row["pid"] for row in dataset.qrels(split).to_pylist()}
    values = []
    for qid in qids:
        pids = [r["pid"] for r in dataset.candidates(split).to_pylist() if r["qid"] == qid][:8]
        ids = tokens.passage_ids(pids)
        scores = scorer.score([(tokens.query_ids(split, qid), ids[pid]) for pid in pids])
        order = [pids[i] for i in np.argsort(-scores)]
        place = order.index(relevant[qid]) + 1 if relevant[qid] in order else None
        values.append(1 / np.log2(place + 1) if place else 0.0)
    return np.mean(values)


def test_looking_changes_nothing_and_is_logged(world, tmp_path):
    watch = Watch(every=8, depth=8, train_queries=20)
    plain = _train(world, tmp_path / "plain", None)
    watched = _train(world, tmp_path / "watched", watch)
    assert _same(plain.weights, watched.weights)
    assert torch.equal(plain.random, watched.random)
    assert [row["loss"] for row in plain.metrics] == [row["loss"] for row in watched.metrics]
    assert not (plain.path / "watch.jsonl").exists()
    assert plain.facts.keys() ^ watched.facts.keys() == {"best_step", "stopped_early", "watched_s"}

    rows = watched.rows
    assert [row["step"] for row in rows] == [0, 8, 16, 24, 30]
    assert [row["queries_seen"] for row in rows] == [0, 80, 160, 240, 300]
    assert [row["pairs_seen"] for row in rows] == [0, 320, 640, 960, 1200]
    assert [row["epoch"] for row in rows] == [0, 8 / 6, 16 / 6, 4, 5]
    assert all(row["measure"] == "nDCG@10" for row in rows)
    highest = -1.0
    for row in rows:
        assert row["best"] == (row["dev"] > highest)
        highest = max(highest, row["dev"])
    assert watched.facts["best_step"] == [row["step"] for row in rows if row["best"]][-1]
    assert not watched.facts["stopped_early"] and watched.facts["steps"] == 30
    assert watched.facts["watched_s"] == sum(row["watch_s"] for row in rows)
    seconds = [row["elapsed_s"] for row in rows]
    assert seconds[0] == 0 and seconds == sorted(seconds)
    assert seconds[-1] <= watched.metrics[-1]["elapsed_s"] <= watched.facts["seconds"]
    assert watched.shown[-1]["dev"] == rows[-1]["dev"] and "dev" not in plain.shown[-1]

    dataset = Dataset(world.dataset.path)
    dev = dataset.queries("dev")["qid"].to_pylist()
    assert rows[-1]["dev"] == pytest.approx(_ndcg(world, watched.path, "dev", dev))


def test_the_train_value_is_of_queries_trained_on(world, tmp_path):
    from kdscale.data.queries import choose_queries

    qids = Dataset(world.dataset.path).queries("train")["qid"].to_pylist()
    watched = _train(world, tmp_path, Watch(every=4, depth=8, train_queries=7), max_steps=4)
    expected = _ndcg(world, watched.path, "train", choose_queries(qids, 7, seed=0))
    assert watched.rows[-1]["train"] == pytest.approx(expected)


def test_the_measure_of_given_scores_by_hand(world):
    from kdscale.evaluation.measures import parse_measures

    dataset, tokens = Dataset(world.dataset.path), Tokens(world.tokens.path)
    qids = dataset.queries("dev")["qid"].to_pylist()[:2]
    sample = Sample(dataset, tokens, "dev", qids, depth=5)
    rows = [r for r in dataset.candidates("dev").to_pylist() if r["qid"] in qids and r["rank"] <= 5]
    assert len(sample.pairs) == len(rows)
    relevant = {row["qid"]: row["pid"] for row in dataset.qrels("dev").to_pylist()}
    is_relevant = np.array([row["pid"] == relevant[row["qid"]] for row in rows])
    measures = parse_measures(["RR@10"])
    found = len({row["qid"] for row, hit in zip(rows, is_relevant, strict=True) if hit})
    assert found > 0
    assert sample.mean(measures, is_relevant * 1.0) == found / 2  # those found are first
    # Equal scores: the order of the pids decides, not that of the candidates.
    places = [
        sorted(r["pid"] for r in rows if r["qid"] == qid).index(relevant[qid]) + 1
        for qid in qids
        if any(r["pid"] == relevant[qid] and r["qid"] == qid for r in rows)
    ]
    assert sample.mean(measures, np.zeros(len(rows))) == pytest.approx(
        sum(1 / p for p in places) / 2
    )


def _stops_at(rows, patience):
    """The step at which a run with these values on dev stops."""
    best, since = -1.0, 0
    for row in rows:
        best, since = (row["dev"], 0) if row["dev"] > best else (best, since + 1)
        if since == patience:
            return row["step"]
    return rows[-1]["step"]


def test_it_stops_early_keeps_the_best_and_a_resumed_run_does_as_well(world, tmp_path):
    # A rate so high that the ranker does not go on rising.
    train = {"lr": 0.05, "max_steps": 200}
    watch = Watch(every=3, depth=8, patience=4, keep_best=True)
    whole = _train(world, tmp_path / "whole", watch, **train)
    steps = whole.facts["steps"]
    assert whole.facts["stopped_early"] and steps == whole.rows[-1]["step"] < 200
    assert steps == _stops_at(whole.rows, 4) == whole.metrics[-1]["step"]
    best = max(row["dev"] for row in whole.rows)
    assert whole.facts["best_step"] == steps - 12
    assert whole.said == [
        f"stopped at step {steps} of 200: nDCG@10 on dev has not risen above the {best:.3f} of "
        f"step {steps - 12}"
    ]
    assert whole.facts["items_seen"] == steps * 10

    # The weights are those of the best look.
    dataset = Dataset(world.dataset.path)
    dev = dataset.queries("dev")["qid"].to_pylist()
    assert _ndcg(world, whole.path, "dev", dev) == pytest.approx(best)
    last = _train(world, tmp_path / "last", Watch(every=3, depth=8, patience=4), **train)
    assert last.facts["steps"] == steps and not _same(last.weights, whole.weights)

    # Dead in the third step from the end, when the last rise is in a checkpoint.
    without = [s for s in range(1, steps) if s % 7]
    resumed = _train(world, tmp_path / "resumed", watch, stop_at=len(without) - 2, **train)
    assert 0 < resumed.facts["resumed_at"] < steps
    assert _timeless(resumed.rows) == _timeless(whole.rows)
    assert [row["loss"] for row in resumed.metrics] == [row["loss"] for row in whole.metrics]
    seconds = [row["elapsed_s"] for row in resumed.metrics]
    assert seconds == sorted(seconds)
    assert _same(resumed.weights, whole.weights)
    assert resumed.facts["best_step"] == whole.facts["best_step"]
    assert resumed.facts["stopped_early"]


def test_the_best_weights_are_in_the_checkpoint_and_not_in_the_export(world, tmp_path):
    watch = Watch(every=3, keep_best=True)
    run = _train(world, tmp_path, watch, max_steps=10)
    checkpoint = LocalWorkspace(tmp_path / "work").fetch("step-000000007")
    assert {"watch.jsonl", "best.safetensors"} <= {p.name for p in checkpoint.iterdir()}
    assert [row["step"] for row in _rows(checkpoint / "watch.jsonl")] == [0, 3, 6]
    assert not (run.path / "best.safetensors").exists()


def test_a_run_can_be_watched_from_the_middle_on(world, tmp_path):
    """Where looking decides nothing it may be changed while a run is stopped."""
    run = *_given(world, None), LocalWorkspace(tmp_path / "work")
    calls = iter(range(1, 100))

    def stop(engine):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return False

    cpu = torch.device("cpu")
    hooks = Hooks(lambda row: None, lambda line: None, stop)
    with pytest.raises(KeyboardInterrupt):
        train_and_export(*run, lambda m: TorchEngine(m, TRAIN, cpu), hooks)
    watched = _train(world, tmp_path, Watch(every=10))
    assert watched.facts["resumed_at"] == 7
    assert [row["step"] for row in watched.rows] == [10, 20, 30]


def test_tensorboard_has_the_curves(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = _train(world, tmp_path, Watch(every=5), max_steps=10)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    for name in ("dev", "train"):
        seen = [(e.step, e.value) for e in events.Scalars(f"watch/{name}")]
        assert seen == [(row["step"], pytest.approx(row[name])) for row in run.rows]
    assert "loss" in events.Tags()["scalars"]


def test_scores_that_are_no_numbers_stop_the_run(world, tmp_path):
    with pytest.raises(FloatingPointError, match="not a number at step"):
        _train(world, tmp_path, Watch(every=2), lr=1e30, max_steps=10)


@pytest.mark.slow
def test_two_workers_see_what_one_process_sees(world, tmp_path, ray_cluster):
    watch = Watch(every=3, depth=8, keep_best=True)
    runs = []
    for name, cluster in (("one", Cluster(engine="torch")), ("two", Cluster(workers=2))):
        out = tmp_path / name
        out.mkdir()
        given = _given(world, watch, max_steps=9, dropout=0.0)
        workspace = LocalWorkspace(tmp_path / f"{name}-work")
        facts = run_training(*given, workspace, out, cluster, Reporter(), name)
        runs.append((facts, _rows(out / "watch.jsonl")))
    (one, ours), (two, theirs) = runs
    assert one["best_step"] == two["best_step"]
    for a, b in zip(ours, theirs, strict=True):
        assert a["step"] == b["step"] and a["queries_seen"] == b["queries_seen"]
        assert a["dev"] == pytest.approx(b["dev"], abs=1e-3)
        assert a["train"] == pytest.approx(b["train"], abs=1e-3)
