"""`kdscale advise`: tables made by hand, with answers that are known."""

import json

import numpy as np
import pytest

from kdscale.advice import source, text
from kdscale.advice.candidates import Shared
from kdscale.advice.decide import DROP, LATENCY, TRAINING, advise, queries_needed
from kdscale.advice.following import next_trials
from kdscale.advice.needs import Needs, parse_duration, span
from kdscale.cli import main
from kdscale.config import STRATEGIES
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import TRIALS, read_trials, trial_rows, write_trials
from kdscale.store import open_store
from kdscale.store.artifact import build_manifest, list_files
from kdscale.sweep.record import Record

QUERIES = 400
DAY, HOUR = 86_400.0, 3_600.0
TEACHER = np.linspace(0.3, 0.9, QUERIES)
ABOUT = {"candidates": 50, "train_queries": 2_000, "data": "made", "split": "test"}


def student(strategy, shape, drop, ms, train_s, budget=1.0, seed=1, noise=0.02, **fields):
    """Rows of a student that loses exactly `drop` on the mean."""
    rng = np.random.default_rng([seed, len(strategy), ord(shape[0])])
    error = rng.normal(0, noise, QUERIES)
    values = TEACHER - drop + error - error.mean()
    return trial_rows(
        {"nDCG@10": values, "AP": values / 2}, system=f"{strategy}/{shape}", strategy=strategy,
        shape=shape, variant="default", budget=budget, seed=seed, ms=ms, train_seconds=train_s,
        speedup=None if ms is None else 200 / ms,
        artifact=f"students/{shape}-{strategy}-{budget}-{seed}", **fields,
    )  # fmt: skip


def teacher():
    values = {"nDCG@10": TEACHER, "AP": TEACHER / 2}
    return trial_rows(values, system="teacher", artifact="teachers/t-1")


SMALL = student("finetune", "2l-128", 0.04, 3, 60)
MIDDLE = student("lm_distill_finetune", "3l-192", 0.015, 8, 100)
LARGE = student("lm_distill_ranker_distill", "4l-312", 0.002, 20, 600)
NO_LM = student("ranker_distill", "4l-312", 0.004, 20, 500)
SHARED = {
    table["artifact"][0].as_py(): Shared(lm_s=7_200.0, scores_s=3_600.0)
    for table in (SMALL, MIDDLE, LARGE, NO_LM)
}


def ask(tables, about=ABOUT, shared=SHARED, **needs):
    import pyarrow as pa

    table = pa.concat_tables([TRIALS.empty_table(), *tables])
    return advise(table, about, Needs(**needs), shared)


WHOLE = [teacher(), SMALL, MIDDLE, LARGE, NO_LM]


@pytest.mark.parametrize(
    "needs, expected",
    [
        ({"latency_ms": 5, "max_drop": 0.05}, ("finetune", "2l-128")),
        # Each update scores the pairs again and starts from the language model that is there.
        (
            {"latency_ms": 30, "update_every_s": 7 * DAY, "train_hours": 2},
            ("lm_distill_ranker_distill", "4l-312"),
        ),
        # No time for the teacher's hour of scoring.
        (
            {"latency_ms": 30, "max_drop": 0.02, "update_every_s": DAY, "train_hours": 0.05},
            ("lm_distill_finetune", "3l-192"),
        ),
        # Trained once: the language model's two hours count.
        ({"latency_ms": 30, "train_hours": 1.5}, ("ranker_distill", "4l-312")),
        # Without --train-hours a training may take until the next update.
        (
            {"max_drop": 0.05, "update_every_s": 0.5 * HOUR},
            ("lm_distill_finetune", "3l-192"),
        ),
    ],
)
def test_other_needs_other_students(needs, expected):
    chosen = ask(WHOLE, **needs).chosen
    assert (chosen.candidate.strategy, chosen.candidate.shape) == expected
    assert not chosen.misses and chosen.worse_p < 0.05


def test_the_answer_names_its_evidence():
    advice = ask(WHOLE, latency_ms=30, update_every_s=7 * DAY, train_hours=2)
    told = "\n".join(text.answer(advice))
    assert told.startswith("Take lm_distill_ranker_distill/4l-312, all training queries.")
    assert "students/4l-312-lm_distill_ranker_distill-1.0-1" in told
    assert "0.598, the teacher 0.600: -0.002" in told and "over 400 queries of made test" in told
    assert "20 ms a query of 50 candidates, 10.0x faster" in told
    assert "1 h of scoring" not in told and "60 min of scoring by the teacher" in told
    assert "2 h of distilling its language model, once" in told
    assert "1 seed: how much another one differs is not known" in told
    assert advice.chosen.family == 4 and "Holm over 4" in told
    reasons = "\n".join(text.reasons(advice))
    assert "3 of 3 shapes rank within 30 ms (2l-128 3 ms, 3l-192 8 ms, 4l-312 20 ms)" in reasons
    assert "its first training takes" in reasons.lower() and "is paid once" in reasons
    # 4l-312 has both sides of one distillation.
    assert "+0.002 with all training queries (lm_distill_ranker_distill, not ranker_" in reasons


def test_seeds_are_one_candidate_and_equal_digests_one_seed():
    seeds = [student("finetune", "2l-128", d, 3, 60, seed=s, digest=str(s))
             for s, d in ((1, 0.001), (2, 0.003), (2, 0.003))]  # fmt: skip
    advice = ask([teacher(), *seeds])
    candidate = advice.chosen.candidate
    assert candidate.seeds == (1, 2) and len(candidate.artifacts) == 2
    assert candidate.mean == pytest.approx(0.598, abs=1e-5)
    assert candidate.seed_sd == pytest.approx(np.std([0.001, 0.003], ddof=1), rel=1e-3)
    assert "2 seeds, the mean of them" in "\n".join(text.answer(advice))
    assert next_trials(advice) == []


def test_of_one_seed_two_more_would_make_it_surer():
    trials = next_trials(ask([teacher(), NO_LM]))
    assert [(t.shape, t.seed) for t in trials] == [("4l-312", 2), ("4l-312", 3)]
    assert trials[0].command(2_000).endswith("--strategy ranker_distill --set ranker.seed=2")


def test_a_loss_that_is_small_but_not_shown_to_be_is_not_recommended():
    noisy = student("finetune", "2l-128", 0.004, 3, 60, noise=0.3)
    advice = ask([teacher(), noisy])
    assert advice.chosen is None and list(advice.nearest.misses) == [DROP]
    told = "\n".join(text.answer(advice))
    assert "it loses 0.004, but that it loses less than 0.01 is not shown" in told
    assert "--max-drop binds: it meets every other need." in told
    # ((1.645 + 0.842) * 0.3 / 0.006)^2, with the noise as it was drawn
    needed = queries_needed(advice.nearest, TEACHER, 0.01)
    assert needed == pytest.approx((2.4865 * 0.3 / 0.006) ** 2, rel=0.15)
    assert f"about {needed:,} judged queries" in told
    assert next_trials(advice)[0].seed == 2


def test_holm_counts_those_that_are_affordable():
    judged = {limit: ask(WHOLE, latency_ms=limit).judged for limit in (30, 5)}
    small = {n: next(j for j in of if j.candidate.shape == "2l-128") for n, of in judged.items()}
    assert {limit: j.family for limit, j in small.items()} == {30: 4, 5: 1}
    assert small[30].worse_p >= small[5].worse_p


def test_quality_binds():
    advice = ask([teacher(), SMALL, student("finetune", "4l-312", 0.03, 20, 90, budget=0.1)],
                 latency_ms=30, train_hours=1)  # fmt: skip
    assert advice.chosen is None and set(advice.without) == {DROP}
    trials = next_trials(advice)
    assert (trials[0].strategy, trials[0].shape, trials[0].budget) == ("finetune", "4l-312", 1.0)
    assert trials[1].strategy == "lm_distill_ranker_distill" and trials[1].budget == 0.1
    assert "--set ranker.max_queries=200" in trials[1].command(2_000)
    assert "ranker.max_queries=10%-OF-THE-QUERIES" in trials[1].command(None)


def test_latency_binds_and_what_is_made_up_is_said_to_be():
    advice = ask([teacher(), LARGE], latency_ms=10)
    assert advice.chosen is None and set(advice.without) == {LATENCY}
    told = "\n".join(text.answer(advice))
    assert "20 ms a query, above 10" in told and "--latency-ms binds" in told
    fewer, narrower = next_trials(advice)
    assert (fewer.shape, narrower.shape) == ("2l-312", "4l-192")
    assert "EXTRAPOLATED from 20 ms of 4l-312" in fewer.why and "not measured" in fewer.why
    assert "{name: 4l-192, layers: 4, hidden: 192, heads: 6, inter" in narrower.command(None)


def test_training_binds():
    advice = ask([teacher(), NO_LM], train_hours=1, update_every_s=DAY)
    assert set(advice.without) == {TRAINING}
    assert "a training takes 68.3 min, above 60 min" in "\n".join(text.answer(advice))
    other, less = next_trials(advice)
    assert other.strategy == "finetune" and "no scoring" in other.why
    assert less.strategy == "ranker_distill" and less.budget == 0.9


def test_when_two_needs_are_missed_none_is_said_to_bind():
    advice = ask([teacher(), student("finetune", "4l-312", 0.1, 20, 90)], latency_ms=10)
    assert not advice.without and "No single need binds" in "\n".join(text.answer(advice))


def test_nothing_is_left_to_try():
    odd = [student(strategy, "odd", 0.1, 9, 9) for strategy in STRATEGIES]
    assert text.following(ask([teacher(), *odd], latency_ms=10)) == [text.NOTHING_LEFT]


def test_a_latency_that_was_not_measured_does_not_qualify():
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, None, 60)], latency_ms=10)
    assert advice.nearest.misses == {LATENCY: "its latency was not measured"}
    assert "latency    not measured" in "\n".join(text.answer(advice))
    assert ask([teacher(), student("finetune", "2l-128", 0.001, None, 60)]).chosen is not None


def test_a_training_that_was_not_timed_does_not_qualify():
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, 3, None)], train_hours=1)
    assert advice.nearest.misses == {TRAINING: "its training was not timed"}


def test_unknown_shared_costs_are_said_to_be():
    advice = ask([teacher(), LARGE], shared={}, train_hours=1)
    assert "not known, and not counted: the teacher's scoring, its language model's" in "\n".join(
        text.answer(advice)
    )


def test_the_candidates_of_the_timings_are_those_that_the_table_tells_of():
    about = {"latency": {"threads": 1, "candidates": 30}, "depth": 50}
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, 4.0, 60)], about, latency_ms=5)
    assert (advice.chosen.ms, advice.candidates) == (4.0, 30)
    broken = ask([teacher(), SMALL], {"latency": [1], "depth": "x"}, max_drop=0.05)
    assert broken.candidates is None and "how many candidates" in "\n".join(text.answer(broken))


def test_another_number_of_candidates_is_extrapolated_and_says_so():
    advice = ask(WHOLE, latency_ms=30, candidates=100)
    assert advice.extrapolated_from == 50 and advice.chosen is None
    assert {j.candidate.shape for j in advice.judged if LATENCY in j.misses} == {"4l-312"}
    told = "\n".join(text.answer(ask(WHOLE, candidates=100)))
    assert "40 ms a query of 100 candidates" in told
    assert "EXTRAPOLATED, in proportion, from 20 ms measured for 50 candidates" in told
    with pytest.raises(KdscaleError, match="--candidates: the table does not say"):
        ask(WHOLE, {}, candidates=100)


def test_a_table_without_rows_or_teacher_or_students():
    with pytest.raises(KdscaleError, match="no rows yet"):
        ask([])
    with pytest.raises(KdscaleError, match="no row of the teacher for nDCG@10"):
        ask([SMALL])
    with pytest.raises(KdscaleError, match="no student"):
        ask([teacher()])


def test_another_measure():
    assert ask(WHOLE, measure="AP").measure == "AP"
    assert ask(WHOLE, {**ABOUT, "primary": "AP"}).measure == "AP"
    with pytest.raises(KdscaleError, match=r"--measure NDCG@10: .*did you mean nDCG@10"):
        ask(WHOLE, measure="NDCG@10")


def test_systems_of_other_queries_are_not_compared():
    other = trial_rows({"nDCG@10": np.ones(3)}, system="finetune/x", strategy="finetune", seed=1)
    with pytest.raises(KdscaleError, match="3 queries, the teacher has 400"):
        ask([teacher(), other])


def test_a_value_that_is_no_number():
    bad = trial_rows({"nDCG@10": np.full(QUERIES, np.nan)}, system="f/x", strategy="f", seed=1)
    with pytest.raises(KdscaleError, match="is not a number"):
        ask([teacher(), bad])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"max_drop": 0.0}, "--max-drop: above 0, not 0.0"),
        ({"max_drop": 1.0}, "--max-drop: below 1, not 1.0"),
        ({"latency_ms": 0.0}, "--latency-ms: above 0, not 0.0"),
        ({"latency_ms": float("nan")}, "--latency-ms: a finite number, not nan"),
        ({"train_hours": -1.0}, "--train-hours: above 0, not -1.0"),
        ({"candidates": 0}, "--candidates: 1 or more, not 0"),
        ({"train_hours": 30.0, "update_every_s": DAY}, "--train-hours 30 is longer than --upd"),
    ],
)
def test_needs_that_cannot_be(given, message):
    with pytest.raises(KdscaleError, match=message):
        Needs(**given)


@pytest.mark.parametrize(
    "written, seconds", [("90s", 90), ("30min", 1_800), ("1.5h", 5_400), ("7d", 7 * DAY)]
)
def test_durations(written, seconds):
    assert parse_duration(written, "--update-every") == seconds


@pytest.mark.parametrize("written", ["7x", "7", "d", "", "0d", "-1d", "1d2h", "7m"])
def test_durations_that_are_none(written):
    with pytest.raises(KdscaleError, match="--update-every"):
        parse_duration(written, "--update-every")


def test_spans():
    assert [span(s) for s in (0.5, 90, 150, 5_400, 7 * DAY)] == [
        "0.5 s", "90 s", "2.5 min", "90 min", "7 d",
    ]  # fmt: skip


def write(path, tables=WHOLE):
    write_trials(path, list(tables), **ABOUT)
    return path


def commit_sweep(store, key, created, tables=WHOLE):
    with store.staging("sweeps", key) as out:
        write(out / "results.parquet", tables)
        manifest = build_manifest(
            kind="sweeps", stage="sweep", config={}, inputs={}, files=list_files(out), facts={},
            created=created, version="0",
        )  # fmt: skip
        store.commit(out, "sweeps", key, manifest)


def test_the_newest_sweep_of_a_store(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "new-2", "2026-02-01T00:00:00+00:00")
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    told = ["--latency-ms", "30", "--train-hours", "2", "--update-every", "7d"]
    assert main(["advise", str(tmp_path / "store"), *told]) == 0
    shown = capsys.readouterr().out
    assert "Take lm_distill_ranker_distill/4l-312" in shown and "sweeps/new-2" in shown
    assert "4 settings, 10 rows" in shown


def test_one_sweep_as_its_end_names_it(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "new-2", "2026-02-01T00:00:00+00:00")
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    assert main(["advise", f"{tmp_path}/store/sweeps/old-1/", "--max-drop", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "2 settings" not in shown and "1 settings" in shown and "sweeps/old-1" in shown
    assert main(["advise", f"{tmp_path}/store/sweeps/gone"]) == 1
    said = capsys.readouterr().err
    assert "sweeps/gone has trials" in said and "kdscale artifacts" in said


def test_a_sweep_at_work_comes_before_an_older_one_that_has_ended(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    record = Record(store, "at-work")
    record.begin({})
    record.put_table(list(WHOLE), ABOUT)
    assert source.newest_sweep(store)[2].endswith("sweeps/at-work")
    nothing_yet = Record(store, "just-begun")
    nothing_yet.begin({})
    assert source.newest_sweep(store)[2].endswith("sweeps/at-work")


def test_json(tmp_path, capsys):
    path = write(tmp_path / "t.parquet")
    assert main(["advise", str(path), "--latency-ms", "5", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chosen"] is None and told["nearest"]["strategy"] == "lm_distill_finetune"
    assert len(told["judged"]) == 4 and told["candidates"] == 50 and told["table"] == str(path)
    assert told["binding"] == {
        "--latency-ms": "lm_distill_ranker_distill/4l-312, all training queries",
        "--max-drop": "finetune/2l-128, all training queries",
    }
    assert told["next"][0]["strategy"] == "lm_distill_ranker_distill"
    assert told["needs"]["latency_ms"] == 5


def test_shared_costs_come_from_the_manifests_of_a_store(tmp_path):
    store = open_store(str(tmp_path))

    def commit(kind, key, inputs, **facts):
        with store.staging(kind, key) as out:
            manifest = build_manifest(
                kind=kind, stage="s", config={}, files=[], facts=facts, created="2026", version="0",
                inputs={role: {"name": name, "digest": "d"} for role, name in inputs.items()},
            )  # fmt: skip
            store.commit(out, kind, key, manifest)

    commit("lms", "l", {}, seconds=70.0)
    commit("scores", "s", {}, seconds=30.0)
    name = LARGE["artifact"][0].as_py()
    commit(*name.split("/"), {"lm": "lms/l", "scores": "scores/s", "dataset": "datasets/gone"})
    commit(*SMALL["artifact"][0].as_py().split("/"), {"dataset": "datasets/gone"})
    path = write(tmp_path / "t.parquet")
    costs = source.shared_costs(store, read_trials(path)[0])
    assert costs == {name: Shared(70.0, 30.0), SMALL["artifact"][0].as_py(): Shared()}


def test_no_table_there(tmp_path, capsys):
    assert main(["advise", str(tmp_path / "none.parquet")]) == 1
    assert "no file" in capsys.readouterr().err
    assert main(["advise", str(tmp_path)]) == 1
    assert "no sweep in" in capsys.readouterr().err
    assert main(["advise", str(tmp_path), "--update-every", "7x"]) == 1
    assert "--update-every '7x'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_in_a_bucket(tmp_path, s3_server, capsys):
    from kdscale.store.s3 import Bucket

    uri = f"s3://{s3_server.bucket}/advise"
    with pytest.raises(KdscaleError, match="no sweep in"):
        source.load(uri)
    commit_sweep(open_store(uri), "k", "2026-01-01T00:00:00+00:00")
    assert main(["advise", uri, "--max-drop", "0.05"]) == 0
    assert "Take lm_distill_ranker_distill/4l-312" in capsys.readouterr().out
    Bucket(uri).put_new("tables/t.parquet", write(tmp_path / "t.parquet").read_bytes())
    assert main(["advise", f"{uri}/tables/t.parquet", "--max-drop", "0.05"]) == 0
    assert "Take lm_distill_ranker_distill/4l-312" in capsys.readouterr().out
    with pytest.raises(KdscaleError, match="there is no"):
        source.load(f"{uri}/none.parquet")
