import copy
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.config import Evaluate
from kdscale.experiment.settings import TransferSplit
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.sections.robustness import depths_view, transfer_view
from kdscale.report.verdict import judge
from tests.report.test_page import Page
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import SHAPES, make_config, make_inputs

STUDENT = "lm_distill_ranker_distill/2l-192"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    root = tmp_path_factory.mktemp("deep")
    config = make_config(root, SHAPES[1:], evaluate=Evaluate(depths=[3, 10]))
    return collect(report_settings(config), make_inputs(config))


def test_every_system_has_a_line_and_a_cell_a_depth(deep):
    view = depths_view(deep, judge(deep))
    assert view["depths"] == [3, 10, 30]
    assert [line["system"]["system"] for line in view["lines"]] == [
        s["system"] for s in deep.systems
    ]
    by_name = {line["system"]["system"]: line["cells"] for line in view["lines"]}
    for name, cells in by_name.items():
        assert cells[-1]["value"] == pytest.approx(deep.value(deep.system(name)))
    assert all(c["delta"] is None for c in by_name["teacher"])
    table = pq.read_table(deep.inputs[step_id("evaluation")].path / "depths.parquet").to_pylist()
    (row,) = [
        r for r in table if (r["system"], r["depth"], r["measure"]) == (STUDENT, 3, "nDCG@10")
    ]
    assert by_name[STUDENT][0]["delta"] == row["delta"]
    least = min(cells := by_name[STUDENT], key=lambda c: c["delta"])
    assert f"with {least['depth']} candidates, where it is lowest" in view["finding"]
    assert len(cells) == 3


def test_the_page_shows_the_depths(deep):
    page = render_page(deep, judge(deep))
    section = re.search(r'<section id="depths".*?</section>', page, re.DOTALL).group(0)
    assert len(re.findall(r"<tr>", section)) == 1 + 6
    assert "3 to 30 candidates are reranked" in section
    ids = [attrs["id"] for _, attrs in Page(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_collection_that_was_reranked_deeper_is_the_one_shown(tmp_path):
    config = make_config(tmp_path, SHAPES[1:], evaluate=Evaluate(depths=[3, 10]))
    evidence = collect(report_settings(config), make_inputs(config))
    path = evidence.inputs[step_id("evaluation")].path / "depths.parquet"
    table = pq.read_table(path)
    far = [
        {**row, "split": "far/test", "depth": depth}
        for row in table.to_pylist()
        if row["depth"] == 30
        for depth in (3, 10, 30, 1000)
    ]
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(far, table.schema)]), path)
    view = depths_view(evidence, judge(evidence))
    assert view["collection"] == "far/test" and view["depths"] == [3, 10, 30, 1000]


def test_one_depth_is_no_section(experiment):
    assert depths_view(experiment.evidence, judge(experiment.evidence)) is None
    assert 'id="depths"' not in experiment.page and 'href="#depths"' not in experiment.page


def test_what_is_kept_elsewhere_and_at_home(deep):
    assert transfer_view(deep) == []
    evidence = copy.deepcopy(deep)
    evidence.settings.transfers["far"] = TransferSplit("test", depth=9)
    halved = {"bm25": 0.2, "teacher": 0.4}
    for system in evidence.systems:
        system["measures"]["far/test"] = {"nDCG@10": halved.get(system["system"], 0.3)}
        if system["system"] != "teacher":
            system["tests"]["far/test"] = {"nDCG@10": system["tests"]["test"]["nDCG@10"]}
    (view,) = transfer_view(evidence)
    assert (view["name"], view["queries"], view["depth"]) == ("far/test", 80, 9)
    by_name = {row["system"]["system"]: row for row in view["rows"]}
    assert by_name["bm25"]["kept"] == pytest.approx(0.5)
    assert by_name[STUDENT]["kept"] == pytest.approx(0.75)
    home = evidence.value(evidence.system(STUDENT)) / evidence.value(evidence.system("teacher"))
    assert by_name[STUDENT]["kept_at_home"] == pytest.approx(home)
    page = render_page(evidence, judge(evidence))
    section = re.search(r'<section id="transfer".*?</section>', page, re.DOTALL).group(0)
    assert "far/test: 80 queries, 9 candidates" in section and "75 %" in section
    # The table of the results has the experiment's own splits alone.
    results = re.search(r'<section id="results".*?</section>', page, re.DOTALL).group(0)
    assert "far/test" not in results
