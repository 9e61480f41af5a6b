from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdscale.errors import KdscaleError
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.figures import MAX_POINTS, _thinned
from kdscale.report.sections.examples import collect_examples
from kdscale.report.sections.lineage import build_tree
from kdscale.report.verdict import judge
from tests.worlds.ids import step_id
from tests.worlds.report_experiment import make_config, make_inputs

STUDENT = "lm_distill_ranker_distill/2l-192"


def test_differences_are_those_of_the_tests(experiment):
    for system in experiment.evidence.students:
        paired = experiment.evidence.paired["test"][system["system"]]
        test = experiment.evidence.test(system)
        assert paired.delta.mean() == pytest.approx(test["delta"])
        assert (paired.delta > 0).sum() == test["wins"]
        assert (paired.delta < 0).sum() == test["losses"]


def test_every_term_of_every_run_has_a_curve(experiment):
    terms = {(str(c.run), c.term) for c in experiment.evidence.curves}
    assert ("teacher", "lce") in terms and ("lm:4l-312", "qkv") in terms
    assert ("student:ranker_distill:2l-192", "margin_mse") in terms
    assert len(terms) == 1 + 2 * 3 + 2 * (1 + 2 + 1 + 2)


def test_a_damaged_training_log_names_its_line(tmp_path):
    config = make_config(tmp_path / "store", shapes=[])
    inputs = make_inputs(config, queries=8)
    log = inputs[step_id("teacher")].path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 3\n')
    with pytest.raises(KdscaleError, match=r"metrics\.jsonl, line 121: not a row"):
        collect(report_settings(config), inputs)


def test_a_primary_measure_that_was_not_evaluated(tmp_path):
    config = make_config(tmp_path / "store", shapes=[])
    inputs = make_inputs(config, queries=8)
    config = replace(config, evaluate=replace(config.evaluate, primary="P@3"))
    with pytest.raises(KdscaleError, match=r"no P@3 for the split 'test'"):
        collect(report_settings(config), inputs)


def test_the_primary_measure_is_that_of_the_split(experiment):
    """The page of measures by split says what the page of one measure says."""
    of_splits = {"default": "RR@10", "test": "nDCG@10"}
    evaluate = replace(experiment.config.evaluate, primary=of_splits, splits=["test"])
    evidence = collect(
        report_settings(replace(experiment.config, evaluate=evaluate)), experiment.inputs
    )
    assert evidence.primary == "nDCG@10"
    for name, paired in experiment.evidence.paired["test"].items():
        np.testing.assert_array_equal(paired.delta, evidence.paired["test"][name].delta)
    assert judge(evidence) == judge(experiment.evidence)
    evaluate = replace(evaluate, primary={"default": "nDCG@10", "test": "AP"})
    other = collect(
        report_settings(replace(experiment.config, evaluate=evaluate)), experiment.inputs
    )
    base = other.system("teacher")
    assert other.value(base) == base["measures"]["test"]["AP"] != evidence.value(base)


def test_examples_are_the_extremes_with_their_ranks(experiment):
    examples = [e for e in collect_examples(experiment.evidence) if e.system == STUDENT]
    paired = experiment.evidence.paired["test"][STUDENT]
    count = experiment.config.report.examples
    ordered = np.sort(paired.delta)[::-1]
    expected = [*ordered[ordered > 0][:count], *ordered[ordered < 0][-count:]]
    assert [e.delta for e in examples] == expected
    for example in examples:
        # One relevant passage a query: its rank alone makes the measure.
        value = {
            rank: 1 / np.log2(rank + 1) if rank and rank <= 10 else 0.0
            for rank in (example.baseline_rank, example.student_rank)
        }
        gained = value[example.student_rank] - value[example.baseline_rank]
        assert gained == pytest.approx(example.delta)


def test_an_example_shows_the_relevant_passage_and_what_was_put_first(experiment):
    for example in collect_examples(experiment.evidence):
        (relevant,) = [p for p in example.passages if "relevant" in p.what]
        assert relevant.pid == example.qid.replace("q", "p") and relevant.grade == 1
        assert relevant.student_rank == example.student_rank
        firsts = {p.pid for p in example.passages if 1 in (p.baseline_rank, p.student_rank)}
        assert firsts == {p.pid for p in example.passages if "first for" in p.what}
        assert all(len(p.text) <= 600 for p in example.passages)


def test_the_tree_holds_every_artifact_once_below_what_it_needed(experiment):
    found = {}

    def walk(nodes, parent):
        for node in nodes:
            assert str(node.role) not in found
            found[str(node.role)] = parent
            walk(node.children, str(node.role))

    walk(build_tree(experiment.inputs), None)
    assert found.keys() == set(map(str, experiment.inputs))
    assert found["dataset"] is None and found["evaluation"] is None
    assert found["tokens"] == "dataset" and found["scores"] == "teacher"
    assert found[f"student:{STUDENT.replace('/', ':')}"] == "scores"
    assert found["student:lm_distill_finetune:2l-192"] == "lm:2l-192"
    assert found["student:finetune:2l-192"] == "tokens"


def test_a_long_curve_is_drawn_with_few_points_and_the_same_mean():
    values = np.random.default_rng(0).normal(size=MAX_POINTS * 10)
    steps, means = _thinned(np.arange(len(values)), values)
    assert len(steps) == MAX_POINTS and means.mean() == pytest.approx(values.mean())


def test_metrics_are_read_for_the_primary_measure_alone(experiment):
    table = pq.read_table(experiment.inputs[step_id("evaluation")].path / "metrics.parquet")
    assert len(set(table["measure"].to_pylist())) == 5
    assert all(len(p.qids) == 80 for p in experiment.evidence.paired["test"].values())
