"""Trials by recipe: means over seeds, tests over queries, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from kdscale.evaluation.trials import against, claims_of_paper, group_trials, students, trial_rows

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.4, 0.9, 200)


def student(strategy, shift, seed, budget=1.0, shape="2l-192", **costs):
    values = BASE + shift + RNG.normal(0, 0.01, 200)
    return trial_rows(
        {"nDCG@10": values}, system=f"{strategy}/{shape}", strategy=strategy, shape=shape,
        variant="default", budget=budget, seed=seed, **costs,
        artifact=f"students/{strategy}-{seed}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def groups():
    return group_trials(
        pa.concat_tables(
            [
                trial_rows({"nDCG@10": BASE}, system="teacher", parameters=22),
                student("finetune", -0.3, 1, ms=4.0),
                student("finetune", -0.2, 2, ms=6.0),
                student("lm_distill_finetune", -0.1, 1),
                student("lm_distill_ranker_distill", -0.001, 1),
                student("ranker_distill", -0.4, 1),
                student("lm_distill_finetune", -0.5, 1, budget=0.1),
            ]
        )
    )


def test_seeds_are_one_group(groups):
    assert [g.system for g in groups][:2] == ["teacher", "finetune/2l-192"]
    teacher, both = groups[0], groups[1]
    assert both.seeds == (1, 2) and teacher.seeds == ()
    assert both.artifacts == ("students/finetune-1", "students/finetune-2")
    assert both.mean("nDCG@10") == pytest.approx(BASE.mean() - 0.25, abs=0.003)
    assert both.values["nDCG@10"].shape == (200,)
    # Two means about 0.1 apart: their standard deviation is 0.1 / sqrt(2).
    assert both.spread("nDCG@10") == pytest.approx(0.1 / 2**0.5, abs=0.003)
    assert groups[2].spread("nDCG@10") is None
    assert both.costs["ms"] == 5.0 and both.costs["speedup"] is None
    assert len(students(groups)) == 5


def test_one_slow_training_is_not_the_cost_of_a_recipe():
    seconds = {1: 50.0, 2: 1000.0, 3: 52.0}
    tables = [student("finetune", 0, seed, train_seconds=s) for seed, s in seconds.items()]
    (group,) = group_trials(pa.concat_tables(tables))
    assert group.costs["train_seconds"] == 52.0


def test_differences_and_what_is_not_worse(groups):
    found = {g.system: g for g in groups}
    close, far = found["lm_distill_ranker_distill/2l-192"], found["ranker_distill/2l-192"]
    (near, _, near_p), (away, away_p, away_kept) = against([close, far], groups[0], "nDCG@10", 0.01)
    assert near.delta == pytest.approx(-0.001, abs=0.003) and near_p < 0.001
    assert away.delta == pytest.approx(-0.4, abs=0.003) and away_p < 0.001 and away_kept > 0.99


def test_the_papers_order_at_the_full_budget(groups):
    claims = claims_of_paper(groups, "nDCG@10")
    assert [(c.better, c.worse) for c in claims] == [
        ("lm_distill_ranker_distill", "lm_distill_finetune"),
        ("lm_distill_finetune", "finetune"),
        ("lm_distill_ranker_distill", "ranker_distill"),
    ]
    assert claims[1].test.delta == pytest.approx(0.15, abs=0.005)
    assert all(c.p_holm < 0.001 and c.shape == "2l-192" for c in claims)
    assert claims_of_paper(groups, "nDCG@10", budget=0.1) == []
