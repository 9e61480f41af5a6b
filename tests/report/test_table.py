import io
import json

import pytest
from rich.console import Console

from kdscale.report.table import results_table
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import make_config, make_inputs


def printed(systems, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(systems, "nDCG@10", "teacher"))
    return console.file.getvalue().splitlines()


@pytest.fixture(scope="module")
def systems(experiment):
    path = experiment.inputs[step_id("evaluation")].path / "systems.json"
    return json.loads(path.read_text())


def test_it_fits_100_columns_a_line_a_system(systems):
    lines = printed(systems)
    assert max(map(len, lines)) <= 100
    for system in systems:
        (line,) = [text for text in lines if text[2:].startswith(f"{system['system']} ")]
        assert f"{system['measures']['test']['nDCG@10']:.3f}" in line


def test_the_student_to_take_is_marked(systems):
    marked = [line for line in printed(systems) if line.startswith("* ")]
    assert marked[0].startswith("* lm_distill_ranker_distill/2l-192 ")
    assert "take this one: no difference from teacher was shown" in marked[1] and len(marked) == 2
    assert not any("≈" in line for line in printed(systems))


def test_who_is_shown_not_to_be_worse_has_a_sign(lenient):
    systems = lenient.systems
    lines = printed(systems)
    assert max(map(len, lines)) <= 98
    signed = {line[2:].split()[0] for line in lines if "≈" in line}
    tests = {s["system"]: s["tests"]["test"].get("nDCG@10", {}) for s in systems}
    shown = {name for name, test in tests.items() if test.get("noninferior")}
    assert "lm_distill_ranker_distill/2l-192" in shown and len(shown) < 9
    assert signed == shown | {"not"}  # the line that says what the sign means


def test_further_measures_are_left_out_where_they_do_not_fit(systems):
    header = printed(systems)[1]
    assert "nDCG@10" in header and "RR@10" in header and "R@50" not in header


def test_no_student_is_marked_where_none_beats_bm25(tmp_path):
    config = make_config(tmp_path / "store")
    inputs = make_inputs(config, skill=dict.fromkeys(config.ranker.strategies, -1.0))
    systems = json.loads((inputs[step_id("evaluation")].path / "systems.json").read_text())
    lines = printed(systems)
    assert not any(line.startswith("* ") for line in lines)
    assert any("no student beats BM25" in line for line in lines)
