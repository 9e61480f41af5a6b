import json
import re

import pytest

from kdscale.data.runs import read_run
from kdscale.report.sections import rankings
from kdscale.report.sections.rankings import rankings_view, safe_json
from kdscale.report.verdict import judge
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import HOSTILE

STUDENT = "lm_distill_ranker_distill/2l-192"


@pytest.fixture(scope="module")
def data(experiment):
    """As the page's script reads it."""
    shown = re.search(r'<template id="rankings-data">(.*?)</template>', experiment.page, re.DOTALL)
    return json.loads(shown.group(1))


def test_every_query_has_the_first_passages_of_every_system(experiment, data):
    assert data["systems"] == [s["system"] for s in experiment.evidence.systems]
    assert len(data["queries"]) == 80
    folder = experiment.inputs[step_id("evaluation")].path / "runs/test"
    by_id = {query["id"]: query for query in data["queries"]}
    for name in ("bm25", "teacher", STUDENT):
        place = data["systems"].index(name)
        for qid, ranking in read_run(folder / f"{name.replace('/', '--')}.trec"):
            pids = [pid for pid, _ in ranking]
            shown = {data["passages"][p][0]: ranks[place] for p, _, ranks in by_id[qid]["passages"]}
            # The ranks of the others' passages too, and of the one relevant passage.
            assert set(pids[:10]) <= shown.keys() and qid.replace("q", "p") in shown
            assert all(rank == pids.index(pid) + 1 for pid, rank in shown.items())


def test_values_and_grades(experiment, data):
    paired = experiment.evidence.paired["test"][STUDENT]
    teacher, student = (data["systems"].index(name) for name in ("teacher", STUDENT))
    by_id = {query["id"]: query for query in data["queries"]}
    for qid, delta in zip(paired.qids, paired.delta, strict=True):
        values = by_id[qid]["values"]
        assert values[student] - values[teacher] == pytest.approx(delta, abs=2e-4)
        grades = {data["passages"][p][0]: grade for p, grade, _ in by_id[qid]["passages"]}
        assert {pid for pid, grade in grades.items() if grade} == {qid.replace("q", "p")}


def test_texts_stand_there_once_and_are_short(data):
    pids = [pid for pid, _ in data["passages"]]
    assert len(pids) == len(set(pids)) == 80
    assert all(len(text) <= 160 for _, text in data["passages"])


def test_the_two_first_shown_are_the_baseline_and_the_student_to_take(experiment):
    form = re.search(r'id="rankings-left">(.*?)</select>.*?id="rankings-right">(.*?)</select>',
                     experiment.page, re.DOTALL)  # fmt: skip
    chosen = [re.search(r"<option selected>(.*?)<", side).group(1) for side in form.groups()]
    assert chosen == ["teacher", STUDENT]


def test_what_is_left_out_is_said_and_is_what_changed_least(experiment, monkeypatch):
    evidence = experiment.evidence
    monkeypatch.setattr(rankings, "MAX_QUERIES", 7)
    view = rankings_view(evidence, judge(evidence))
    shown = [query["id"] for query in json.loads(view["json"])["queries"]]
    change = {}
    for paired in (p for n, p in evidence.paired["test"].items() if "/" in n):
        for qid, delta in zip(paired.qids, paired.delta, strict=True):
            change[qid] = max(change.get(qid, 0.0), abs(delta))
    assert (view["shown"], view["of"]) == (7, 80) and len(shown) == 7
    assert min(change[q] for q in shown) >= max(v for q, v in change.items() if q not in shown)
    monkeypatch.setattr(rankings, "MAX_PASSAGES", 60)
    few = json.loads(rankings_view(evidence, judge(evidence))["json"])
    assert len(few["passages"]) <= 60 and 0 < len(few["queries"]) < 7


@pytest.mark.parametrize(
    "text", [HOSTILE, "</template>", "<!--", "&lt;&#0;", "\ud800\x00\u2028", "日本"], ids=ascii
)
def test_no_text_ends_the_data(text):
    shown = safe_json([text])
    assert shown.isascii() and not set("<>&") & set(shown)
    assert json.loads(shown) == [text]
