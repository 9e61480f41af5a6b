import json
import math
import re

import numpy as np
import pytest

from kdscale.config import Ranker
from kdscale.errors import KdscaleError
from kdscale.experiment.steps import report_settings
from kdscale.report import figures
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.sections.convergence import convergence, read_watched
from kdscale.report.verdict import judge
from tests.report.test_page import Page
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import SHAPES, make_config, make_inputs

STRATEGIES = ["finetune", "lm_distill_ranker_distill"]


def _watch(inputs, measure="nDCG@10", steps=(0, 50, 100, 150)):
    """Leaves a watch.jsonl with every student: dev rises, and train rises twice as much."""
    for role, artifact in inputs.items():
        if role.kind != "student":
            continue
        with (artifact.path / "watch.jsonl").open("a") as log:
            for step in steps:
                rise = 0.3 * (1 - math.exp(-step / 60))
                row = {"step": step, "epoch": step / 100, "queries_seen": 8 * step}
                row |= {"pairs_seen": 24 * step, "elapsed_s": step / 4, "measure": measure}
                row |= {"dev": 0.2 + rise, "train": 0.2 + 2 * rise, "best": True}
                log.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    config = make_config(
        tmp_path_factory.mktemp("store"), SHAPES, ranker=Ranker(strategies=STRATEGIES)
    )
    inputs = make_inputs(config, queries=8)
    _watch(inputs)
    return collect(report_settings(config), inputs)


def _text(page):
    return " ".join("".join(Page(page).text).split())


def test_the_page_has_the_section_where_runs_were_watched(watched):
    page = render_page(watched, judge(watched))
    parsed = Page(page)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert "convergence" in ids and len(ids) == len(set(ids))
    assert "#convergence" in [attrs["href"] for attrs in parsed.all("a")]
    section = re.search(r'<section id="convergence".*?</section>', page, re.DOTALL).group(0)
    assert section.count("<figcaption>") == 3
    assert page.index('id="training"') < page.index('id="convergence"') < page.index('id="queries"')
    for strategy in STRATEGIES:
        assert f"{strategy}/4l-312" in _text(page) and f"{strategy}/2l-192" in _text(page)
    label = re.search(r'aria-label="(nDCG@10 on dev, by training queries[^"]*)"', section).group(1)
    assert "finetune/2l-192 from 0.200 to 0.475" in label


def test_without_a_log_there_is_no_section(experiment):
    assert "convergence" not in experiment.page.replace("convergence.", "")
    assert convergence(experiment.evidence) == []


def test_a_line_is_a_strategy_and_shape_and_the_gap_is_train_minus_dev(watched):
    (group,) = convergence(watched)
    assert group["measure"] == "nDCG@10" and group["levels"] == {}
    rise = 0.3 * (1 - math.exp(-150 / 60))
    by_queries, by_time, gap = group["panels"]
    for panel, last in ((by_queries, 0.2 + rise), (by_time, 0.2 + rise), (gap, rise)):
        assert len(panel["lines"]) == 4
        assert [line["last"] for line in panel["lines"]] == pytest.approx([last] * 4)
        ends = {(line["name"], line["color"], line["dash"]) for line in panel["lines"]}
        assert ends == {
            (f"{strategy}/{shape.name}", strategy, figures.SVG_DASHES[i])
            for strategy in STRATEGIES
            for i, shape in enumerate(SHAPES)
        }
    assert gap["title"] == "nDCG@10 on train minus dev"


def test_each_measure_has_its_panels(tmp_path):
    config = make_config(tmp_path, SHAPES[:1], ranker=Ranker(strategies=["finetune"]))
    inputs = make_inputs(config, queries=8)
    _watch(inputs, "RR@10", steps=(0, 50))
    _watch(inputs, "nDCG@10", steps=(100, 150))
    first, second = convergence(collect(report_settings(config), inputs))
    assert (first["measure"], second["measure"]) == ("RR@10", "nDCG@10")
    assert len({panel["title"] for group in (first, second) for panel in group["panels"]}) == 6


def test_bm25_and_the_teacher_are_drawn_where_dev_was_evaluated(watched):
    for system in watched.systems:
        system["measures"]["dev"] = {"nDCG@10": 0.61 if system["system"] == "teacher" else 0.4}
    (group,) = convergence(watched)
    for system in watched.systems:
        del system["measures"]["dev"]
    assert group["levels"] == {"bm25": 0.4, "teacher": 0.61}
    by_queries, by_time, gap = (panel["svg"] for panel in group["panels"])
    assert "teacher 0.610" in by_queries and "BM25 0.400" in by_time
    assert "teacher" not in re.sub(r"var\(--teacher\)", "", gap)


def test_a_wide_range_of_queries_is_drawn_on_a_log_scale():
    x = np.array([0.0, 10, 100, 1000])
    lines = [figures.Line(x, np.array([0.1, 0.2, 0.3, 0.4]), "finetune", 0)]
    assert "queries seen, log scale" in figures.progress_panel(lines, "a", "queries seen", "y", {})
    near = [figures.Line(x[:3], lines[0].y[:3], "finetune", 0)]
    assert "log scale" not in figures.progress_panel(near, "b", "queries seen", "y", {})
    start = [figures.Line(x[:1], lines[0].y[:1], "finetune", 0)]
    assert "queries seen" in figures.progress_panel(start, "c", "queries seen", "y", {})


@pytest.mark.parametrize("line", ['{"step": 3', "[]", '{"measure": "AP", "step": null}', "7"])
def test_a_damaged_log_names_its_line(tmp_path, line):
    (tmp_path / "watch.jsonl").write_text(line + "\n")
    with pytest.raises(KdscaleError, match=r"watch\.jsonl, line 1: not what a watched run logs"):
        read_watched(step_id("student:finetune:s"), tmp_path)


def test_the_stage_writes_the_same_page_again(watched):
    first = render_page(watched, judge(watched))
    assert render_page(watched, judge(watched)) == first
