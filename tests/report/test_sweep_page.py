"""The page of a sweep."""

import re

import numpy as np
import pytest

from kdscale.config import STRATEGIES
from kdscale.evaluation.trials import read_trials
from kdscale.report.sweep_page import importance, pareto_front, render_sweep
from tests.report.test_page import Page
from tests.report.test_trials_on_page import make_trials


def make_told(**changes):
    trials = [
        {
            "id": f"{number:04d}", "strategy": strategy, "shape": shape, "budget": 1.0, "seed": 1,
            "variant": "default", "settings": {"ranker.train.lr": lr, "lm.init": "svd"},
            "status": "finished", "value": 0.3 + 0.1 * level + 0.05 * (shape == "4l-312"),
            "curve": [[100, 0.2], [200, 0.3 + 0.1 * level]], "seconds": 80.0,
        }
        for number, (level, strategy, shape, lr) in enumerate(
            (level, strategy, shape, lr)
            for level, strategy in enumerate(STRATEGIES)
            for shape in ("4l-312", "2l-192")
            for lr in (1e-4, 1e-3)
        )
    ]  # fmt: skip
    trials.append({**trials[0], "id": "0099", "status": "stopped", "value": 0.21, "step": 90})
    trials.append(
        {**trials[0], "id": "0100", "status": "failed", "reason": "<b>x</b>", "value": None}
    )
    return {
        "name": "sweep-quick", "metric": "nDCG@10", "split": "dev",
        "created": "2026-01-02T03:04:05",
        "counts": {"trials": 18, "finished": 16, "stopped": 1, "failed": 1},
        "shared": {
            "pairs_scored": {"made": 7500, "found": 0},
            "language_models": {"made": 1, "found": 2},
        },
        "left_out": "", "trials": trials, "train_queries": 1500,
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    table, about = read_trials(make_trials(tmp_path_factory.mktemp("sweep") / "t.parquet"))
    return render_sweep(table, {**about, **make_told()})


def test_every_section_is_there_and_ids_are_unique(page):
    for section in ("front", "trials", "importance", "parallel", "curves", "rest"):
        assert f'id="{section}"' in page and f'href="#{section}"' in page
    ids = [attrs["id"] for _, attrs in Page(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "16 of 18 trials finished, 1 stopped early, 1 failed" in page
    assert "The best student is" in page
    assert "<dd>7,500</dd>" in page and "<dd>3 <small>2 were there</small></dd>" in page


def test_what_is_not_ours_is_escaped(page):
    assert "<b>x" not in page and "&lt;b&gt;x" in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_a_sweep_without_a_finished_student(tmp_path):
    path = make_trials(tmp_path / "t.parquet", shapes=())
    told = make_told()
    told["trials"] = told["trials"][-2:]
    told["counts"] = {"trials": 2, "finished": 0, "stopped": 1, "failed": 1}
    page = render_sweep(read_trials(path)[0], told)
    assert "No student has been finished" in page and 'id="rest"' in page
    assert 'id="front"' not in page and 'id="importance"' not in page


def test_the_front_is_what_no_other_beats():
    points = [(1.0, 0.3), (2.0, 0.5), (3.0, 0.4), (2.0, 0.45), (4.0, 0.5), (1.0, 0.3)]
    assert pareto_front(points) == [True, True, False, False, False, True]


def test_importance_by_hand():
    """Two strategies 0.2 apart, two rates 0.1 apart, no more: 0.8 and 0.2 of the variance."""
    trials = [
        {"strategy": s, "shape": "a", "value": 0.2 * (s == "finetune") + 0.1 * (lr == 1e-3),
         "settings": {"ranker.train.lr": lr}}
        for s in ("finetune", "ranker_distill") for lr in (1e-4, 1e-3)
    ]  # fmt: skip
    first, second = importance(trials)
    assert (first["key"], second["key"]) == ("strategy", "ranker.train.lr")
    assert first["share"] == pytest.approx(0.8) and second["share"] == pytest.approx(0.2)
    assert first["levels"][0] == {"label": "finetune", "mean": pytest.approx(0.25), "trials": 2}


def test_numbers_of_a_range_are_taken_in_three_parts():
    rates = np.geomspace(1e-4, 1e-2, 12)
    trials = [{"strategy": "finetune", "value": float(i), "settings": {"lr": float(lr)}}
              for i, lr in enumerate(rates)]  # fmt: skip
    (row,) = importance(trials)
    assert row["key"] == "lr" and [level["trials"] for level in row["levels"]] == [4, 4, 4]
    assert row["share"] == pytest.approx(128 / 143)


def test_too_few_trials_say_nothing():
    assert importance([{"strategy": "finetune", "value": 1.0}] * 2) == []
