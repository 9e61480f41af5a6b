import dataclasses
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from kdscale.config import Ranker
from kdscale.data.schema import QUERY_TYPES
from kdscale.data.shards import write_table
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.sections.query_types import query_types_view
from kdscale.report.verdict import judge
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import make_config, make_inputs

WORST = "finetune/2l-192"


@pytest.fixture(scope="module")
def rows(experiment):
    return pq.read_table(
        experiment.inputs[step_id("evaluation")].path / "query_types.parquet"
    ).to_pylist()


def test_a_cell_a_bucket_and_student(experiment, rows):
    view = query_types_view(experiment.evidence, judge(experiment.evidence))
    names = [s["system"] for s in view["systems"]]
    assert names == [s["system"] for s in experiment.evidence.students]
    (ranks,) = [f for f in view["features"] if "BM25 rank" in f["words"]]
    assert [b["label"] for b in ranks["buckets"]] == ["1", "2–5", "6–10", "not found"]
    for place, bucket in enumerate(ranks["buckets"]):
        for name, cell in zip(names, bucket["cells"], strict=True):
            (row,) = [
                r for r in rows if (r["system"], r["feature"], r["place"]) == (name, "rank", place)
            ]
            assert (cell["loss"], bucket["queries"]) == (row["loss"], row["queries"])
            assert cell["sure"] == (row["ci_low"] > 0 or row["ci_high"] < 0)
            assert cell["shade"].startswith("lost" if row["loss"] > 0 else ("won", "even"))
    deepest = max(rows, key=lambda r: abs(r["loss"]))["loss"]
    shades = [c["shade"] for f in view["features"] for b in f["buckets"] for c in b["cells"]]
    assert ("lost-5" if deepest > 0 else "won-5") in shades


def about(tmp_path, change):
    """The finding where the one student's rows have been changed."""
    config = make_config(tmp_path, ranker=Ranker(strategies=["finetune"]))
    config = replace(config, students=config.students[1:])
    inputs = make_inputs(config)
    path = inputs[step_id("evaluation")].path / "query_types.parquet"
    table = pq.read_table(path)
    changed = [row | change(row) for row in table.to_pylist()]
    columns = [[row[name] for row in changed] for name in QUERY_TYPES.names]
    write_table(path, type(table).from_arrays(columns, schema=QUERY_TYPES), QUERY_TYPES)
    evidence = collect(report_settings(config), inputs)
    return query_types_view(evidence, judge(evidence))["finding"]


def test_what_explains_most_is_said_with_an_example(tmp_path):
    finding = about(
        tmp_path,
        lambda row: (
            {"rho": 0.41, "p_holm": 0.0002, "example": "q003"}
            if row["feature"] == "rank"
            else {"rho": -0.1, "p_holm": 1.0}
        ),
    )
    assert f"{WORST} loses the more on a query, the further down BM25 ranks its relevant" in finding
    assert "Spearman's ρ +0.410, Holm's correction, p < 0.001" in finding
    assert re.search(r"it loses \d\.\d{3} on the mean of \d+ queries", finding)
    assert finding.endswith("most on “what are the first symptoms of anemia”.")


def test_that_nothing_is_significant_is_said(tmp_path):
    finding = about(tmp_path, lambda row: {"rho": -0.1, "p_holm": 0.6})
    assert finding.startswith(f"No kind of query explains where {WORST} loses: none of its 4")
    assert "Spearman's ρ −0.100" in finding and "p = 0.600" in finding


def test_a_student_that_never_differs_has_no_kind(tmp_path):
    nothing = {"rho": None, "p": None, "p_holm": None}
    assert "are all of one kind" in about(tmp_path, lambda row: nothing)


def test_without_students_there_is_no_section(experiment):
    empty = dataclasses.replace(
        experiment.evidence, systems=[s for s in experiment.evidence.systems if not s["strategy"]]
    )
    assert query_types_view(empty, judge(empty)) is None
