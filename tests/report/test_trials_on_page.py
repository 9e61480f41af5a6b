"""The trials on the page."""

import dataclasses
import re

import numpy as np
import pytest

from kdscale.config import STRATEGIES, Evaluate
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import trial_rows, write_trials
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.sections.trials import trials_view
from kdscale.report.verdict import judge
from tests.report.test_page import Page
from tests.worlds.report_experiment import SHAPES, make_config, make_inputs

QUERIES = 60


def make_trials(path, shapes=("4l-312", "2l-192"), budgets=(0.1, 1.0), variant="default"):
    rng = np.random.default_rng(5)
    base = rng.uniform(0.5, 1.0, QUERIES)

    def rows(shift, **fields):
        own = np.clip(base + shift + rng.normal(0, 0.02, QUERIES), 0, 1)
        return trial_rows({"nDCG@10": own, "RR@10": own}, **fields)

    tables = [rows(-0.3, system="bm25"), rows(0.0, system="teacher", parameters=22_000_000)]
    for size, shape in enumerate(shapes):
        for level, strategy in enumerate(STRATEGIES):
            for budget in budgets:
                for seed in (1, 2, 3):
                    shift = -0.4 + 0.08 * level - 0.05 * (1 - budget) - 0.02 * size
                    tables.append(
                        rows(
                            shift, system=f"{strategy}/{shape}", strategy=strategy, shape=shape,
                            variant=variant, budget=budget, seed=seed, train_seconds=90.0 * budget,
                            parameters=14_000_000 // (1 + size), speedup=2.5 * (1 + size),
                        )
                    )  # fmt: skip
    write_trials(
        path, tables, data="medquad", split="test", depth=50, train_queries=4000,
        hardware={"cpu": "a CPU"},
    )  # fmt: skip
    return path


def test_rows_claims_and_panels(tmp_path):
    view = trials_view(make_trials(tmp_path / "t.parquet"), Evaluate())
    assert view["measures"] == ["nDCG@10", "RR@10"] and view["queries"] == QUERIES
    names = [(r["group"].shape, r["group"].strategy, r["group"].budget) for r in view["rows"]]
    assert len(names) == 2 + 2 * 4 * 2
    assert names[2] == ("4l-312", "finetune", 1.0) and names[6] == ("4l-312", "finetune", 0.1)
    assert view["rows"][1]["of_teacher"] == 1.0 and view["rows"][1]["test"] is None
    assert all(row["spread"] is not None for row in view["rows"][2:])
    assert len(view["claims"]) == 6 and all(c["shown"] for c in view["claims"])
    assert [p["title"] for p in view["panels"]] == [
        "4l-312, by data budget",
        "4l-312, by training time",
        "2l-192, by data budget",
        "2l-192, by training time",
    ]


def test_a_wide_range_of_budgets_has_numbers_on_its_axis(tmp_path):
    path = make_trials(tmp_path / "t.parquet", budgets=(0.01, 0.1, 1.0))
    by_budget = str(trials_view(path, Evaluate())["panels"][0]["svg"])
    assert ">1000<" in by_budget and "mathdefault" not in by_budget


def test_one_budget_draws_no_curve(tmp_path):
    view = trials_view(make_trials(tmp_path / "t.parquet", budgets=(1.0,)), Evaluate())
    assert view["panels"] == [] and len(view["rows"]) == 10


def test_the_page_has_the_section(tmp_path):
    config = make_config(tmp_path / "store", SHAPES[1:])
    trials = make_trials(tmp_path / "t.parquet", variant="a <b>x</b> variant")
    config = dataclasses.replace(
        config, report=dataclasses.replace(config.report, trials=str(trials))
    )
    evidence = collect(report_settings(config), make_inputs(config))
    page = render_page(evidence, judge(evidence))
    section = re.search(r'<section id="trials".*?</section>', page, re.DOTALL).group(0)
    assert 'href="#trials"' in page and "60 queries, 50 candidates each" in section
    assert len(re.findall(r"<tr>", section)) == 1 + 2 + 16
    assert "a &lt;b&gt;x&lt;/b&gt; variant" in section and "<b>x" not in page
    ids = [attrs["id"] for _, attrs in Page(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_no_trials_no_section(experiment):
    assert 'id="trials"' not in experiment.page


def test_a_table_without_students_is_refused(tmp_path):
    make_trials(tmp_path / "t.parquet", shapes=())
    with pytest.raises(KdscaleError, match="no student, to show"):
        trials_view(tmp_path / "t.parquet", Evaluate())
