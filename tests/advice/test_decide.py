import pytest

from kdscale.advice import text
from kdscale.advice.decide import (
    DROP,
    LATENCY,
    TRAINING,
    Needs,
    parse_duration,
    queries_needed,
    span,
)
from kdscale.advice.following import next_trials
from kdscale.errors import KdscaleError
from tests.advice.tables import DAY, HOUR, TEACHER, WHOLE, ask, student, teacher


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


def test_when_two_needs_are_missed_none_is_said_to_bind():
    advice = ask([teacher(), student("finetune", "4l-312", 0.1, 20, 90)], latency_ms=10)
    assert not advice.without and "No single need binds" in "\n".join(text.answer(advice))


def test_a_latency_that_was_not_measured_does_not_qualify():
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, None, 60)], latency_ms=10)
    assert advice.nearest.misses == {LATENCY: "its latency was not measured"}
    assert "latency    not measured" in "\n".join(text.answer(advice))
    assert ask([teacher(), student("finetune", "2l-128", 0.001, None, 60)]).chosen is not None


def test_a_training_that_was_not_timed_does_not_qualify():
    advice = ask([teacher(), student("finetune", "2l-128", 0.001, 3, None)], train_hours=1)
    assert advice.nearest.misses == {TRAINING: "its training was not timed"}


def test_another_number_of_candidates_is_extrapolated_and_says_so():
    advice = ask(WHOLE, latency_ms=30, candidates=100)
    assert advice.extrapolated_from == 50 and advice.chosen is None
    assert {j.candidate.shape for j in advice.judged if LATENCY in j.misses} == {"4l-312"}
    told = "\n".join(text.answer(ask(WHOLE, candidates=100)))
    assert "40 ms a query of 100 candidates" in told
    assert "EXTRAPOLATED, in proportion, from 20 ms measured for 50 candidates" in told
    with pytest.raises(KdscaleError, match="--candidates: the table does not say"):
        ask(WHOLE, {}, candidates=100)


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
