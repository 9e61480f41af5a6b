import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from kdscale.config import Evaluate, Ranker
from kdscale.experiment.load import load_config
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.verdict import judge
from tests.worlds.report_experiment import HOSTILE, make_config, make_inputs

VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}
FETCHING = {"src", "href", "xlink:href", "srcset", "data", "poster", "action"}


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(experiment):
    return Page(experiment.page)


def test_the_page_is_well_formed_and_its_ids_are_unique(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.all("a")] + [
        attrs["xlink:href"][1:] for _, attrs in page.tags if "xlink:href" in attrs
    ]
    assert links and set(links) <= set(ids)


def test_nothing_is_fetched(page, experiment):
    for tag, attrs in page.tags:
        for name in FETCHING & attrs.keys():
            assert attrs[name].startswith(("#", "data:,")), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", experiment.page, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style


def test_hostile_text_is_shown_and_not_run(page, experiment):
    assert page.all("img") == []
    assert len(page.all("script")) == 1
    assert HOSTILE not in experiment.page
    assert any(HOSTILE in text for text in page.text)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_hostile_names_are_escaped_everywhere(tmp_path):
    config = make_config(tmp_path / "store", shapes=[])
    config = replace(
        config,
        report=replace(config.report, title=HOSTILE),
        source=replace(config.source, path=HOSTILE),
    )
    evidence = collect(report_settings(config), make_inputs(config, queries=8))
    parsed = Page(render_page(evidence, judge(evidence)))
    assert parsed.all("img") == [] and len(parsed.all("script")) == 1
    assert "".join(parsed.text).count(HOSTILE) == 5  # title, heading, configuration twice, lineage


def test_the_script_runs_under_the_pages_own_policy(experiment):
    import base64
    import hashlib

    script = re.search(r"<script>(.*?)</script>", experiment.page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in experiment.page


def test_every_system_is_a_row_of_the_results(experiment):
    table = re.search(r'<table class="results".*?</table>', experiment.page, re.DOTALL).group(0)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)[2:]
    assert len(rows) == len(experiment.evidence.systems) == 10
    columns = {len(re.findall(r"<t[dh]\b", row)) for row in rows}
    assert columns == {1 + 3 + 5 + 3 + 2 + 1}
    taken = [row for row in rows if "take this" in row]
    assert len(taken) == 1 and 'class="taken"' in taken[0]


def test_figures_have_a_text_for_who_cannot_see_them(page):
    figures = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    # The scatter, one term of the teacher, three of the LMs, three a shape, eight students.
    assert len(figures) == 1 + 1 + 3 + 2 * 3 + 8
    assert all(len(attrs["aria-label"]) > 40 for attrs in figures)


def test_figures_take_their_colours_from_the_theme(experiment):
    svgs = re.findall(r"<svg.*?</svg>", experiment.page, re.DOTALL)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", "".join(svgs)))
    style = re.search(r"<style>(.*?)</style>", experiment.page, re.DOTALL).group(1)
    light, dark = style.split("prefers-color-scheme: dark", 1)
    assert {"ink", "finetune", "lm-distill-ranker-distill", "win", "loss"} <= used
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in used)
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", "".join(svgs)))
    assert fixed == set()


def test_the_configuration_on_the_page_is_the_experiment(experiment, tmp_path):
    import html

    shown = re.search(r'<pre class="config"[^>]*>(.*?)</pre>', experiment.page, re.DOTALL)
    saved = tmp_path / "config.yaml"
    saved.write_text(html.unescape(shown.group(1)), encoding="utf-8")
    assert yaml.safe_load(saved.read_text())["name"] == "health-questions"
    assert load_config(saved) == experiment.config


def test_every_artifact_is_in_the_lineage_with_its_digest(page, experiment):
    shown = "".join(page.text)
    for artifact in experiment.inputs.values():
        assert artifact.name in shown and artifact.digest in shown


def test_an_experiment_without_students_has_a_page_and_always_the_same(tmp_path):
    config = make_config(tmp_path / "store", shapes=[])
    evidence = collect(report_settings(config), make_inputs(config, queries=8))
    text = render_page(evidence, judge(evidence))
    assert any("no students" in shown for shown in Page(text).text)
    assert render_page(evidence, judge(evidence)) == text


def test_bm25_can_be_the_baseline(tmp_path):
    config = make_config(
        tmp_path / "store",
        evaluate=Evaluate(baseline="bm25", primary="RR@10", measures=["RR@10"]),
        ranker=Ranker(strategies=["lm_distill_ranker_distill"]),
    )
    evidence = collect(report_settings(config), make_inputs(config))
    shown = "".join(Page(render_page(evidence, judge(evidence))).text)
    assert "Rank by BM25" in shown and "significantly above BM25" in shown


def test_the_stage_says_what_to_take(experiment):
    assert experiment.facts == {
        "student": "lm_distill_ranker_distill/2l-192",
        "standing": "level",
        "systems": 10,
    }
