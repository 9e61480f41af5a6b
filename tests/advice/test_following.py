from kdscale.advice import text
from kdscale.advice.decide import DROP, LATENCY, TRAINING
from kdscale.advice.following import next_trials
from kdscale.config import STRATEGIES
from tests.advice.tables import DAY, LARGE, NO_LM, SMALL, ask, student, teacher


def test_of_one_seed_two_more_would_make_it_surer():
    trials = next_trials(ask([teacher(), NO_LM]))
    assert [(t.shape, t.seed) for t in trials] == [("4l-312", 2), ("4l-312", 3)]
    assert trials[0].command(2_000).endswith("--strategy ranker_distill --set ranker.seed=2")


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


def test_nothing_is_left_to_try():
    odd = [student(strategy, "odd", 0.1, 9, 9) for strategy in STRATEGIES]
    assert text.following(ask([teacher(), *odd], latency_ms=10)) == [text.NOTHING_LEFT]
