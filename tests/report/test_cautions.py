import pytest

from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import cautions, collect
from kdscale.report.page import render_page
from kdscale.report.verdict import judge
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import make_config, make_inputs


@pytest.fixture
def evidence(tmp_path):
    config = make_config(tmp_path)
    return collect(report_settings(config), make_inputs(config))


def test_nothing_is_said_where_nothing_was_cut_or_met_twice(evidence):
    assert cautions(evidence) == []
    assert "bears on these figures" not in render_page(evidence, judge(evidence))


def test_what_was_cut_or_met_twice_stands_below_the_results(evidence):
    cut = {"pairs": 60, "queries": 0, "passages": 50, "tokens": 4_000}
    counts = {"pairs": 100, "queries": 10, "passages": 80, "tokens": 10_000, "cut": cut}
    evidence.inputs[step_id("tokens")].facts["pairs"] = {"test": counts, "other": counts}
    dataset = evidence.inputs[step_id("dataset")].facts
    dataset["candidates_equal"] = {"test": {"repeated": 9, "unjudged": 3}}
    dataset["queries"] = {"train": {"leaked": {"test": 5, "dev": 2}, "dropped_as_leaked": 0}}
    lost, leaked, unjudged = cautions(evidence)
    assert lost.startswith("60 % of the pairs of test are longer than prepare.max_length (128")
    assert "40 % of all tokens are lost" in lost
    assert leaked.startswith("Training queries") and "5 in test;" in leaked and "dev" not in leaked
    assert unjudged.startswith("Candidates of test") and ": 3. They count as not" in unjudged
    page = render_page(evidence, judge(evidence))
    assert all(f"<li>{said}</li>" in page for said in (lost, leaked, unjudged))
    dataset["queries"]["train"]["dropped_as_leaked"] = 5
    assert cautions(evidence) == [lost, unjudged]
