"""The parts of a config that the keys of artifacts are made of."""

import pytest

from kdscale.config import Config
from kdscale.experiment.load import load_config
from kdscale.experiment.run import key_of
from kdscale.experiment.steps import build_steps
from tests.worlds.world import make_config, make_encoder

UNCOUNTED = ("micro_tokens", "checkpoint_every", "log_every")
PLAIN = {"name": "tiny", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}


def plan(config: Config):
    """By step: stage, label, what of the settings is in the key, and inputs by name."""
    return {
        step.name: (
            step.stage,
            step.label,
            key_of(step),
            {str(role): str(id_) for role, id_ in step.inputs.items()},
        )
        for step in build_steps(config).values()
    }


def test_a_shape_without_an_embedding_width_has_that_of_its_states(tmp_path):
    steps = plan(load_config(make_config(tmp_path, students=[PLAIN])))
    same = plan(load_config(make_config(tmp_path, students=[{**PLAIN, "embedding": 0}])))
    assert steps == same


def test_what_changes_no_result_is_in_no_key(tmp_path):
    """Of all settings, one by one: those that a type marks so change nothing but the page, which
    shows them, and where things lie or run not even that."""
    path = make_config(tmp_path)
    steps = plan(load_config(path))
    for override in (
        *(f"{s}.train.{t}=3" for s in ("teacher", "lm", "ranker") for t in UNCOUNTED),
        *("lm.train.zero_stage=2", "score.batch_tokens=9", "evaluate.batch_tokens=9"),
        *("ranker.watch.every=3", "ranker.watch.depth=7"),
    ):
        other = plan(load_config(path, [override]))
        assert {name for name in steps if steps[name] != other[name]} == {"report"}, override
    for override in ("cluster.workers=2", "cluster.engine=torch", f"storage.uri={tmp_path}/other"):
        assert plan(load_config(path, [override])) == steps


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("prepare.max_length=24", {"tokens"}),
        ("prepare.max_chars=900", {"dataset", "tokens"}),
        ("prepare.negatives=3", {"dataset"}),
        ("prepare.min_grade=2", {"dataset", "evaluation"}),
        ("score.precision=bf16", {"scores"}),
        ("teacher.train.lr=0.1", {"teacher"}),
        ("lm.layer_map=[2]", {"lm:tiny"}),
        ("lm.head_steps=7", set()),  # of mlm_kl alone
        ("evaluate.alpha=0.01", {"evaluation"}),
        ("report.examples=2", set()),
    ],
)
def test_a_setting_is_in_the_keys_of_the_steps_that_read_it(tmp_path, override, changed):
    path = make_config(tmp_path)
    before, after = (plan(load_config(path, given)) for given in ([], [override]))
    assert {name for name in before if before[name] != after[name]} == changed | {"report"}


def test_an_embedding_width_reruns_its_student_and_nothing_of_the_teacher(tmp_path):
    steps = plan(load_config(make_config(tmp_path, students=[PLAIN])))
    other = plan(load_config(make_config(tmp_path, students=[{**PLAIN, "embedding": 8}])))
    changed = {name for name in steps if steps[name] != other[name]}
    students = {name for name in steps if name.startswith(("lm:", "student:"))}
    assert changed == students | {"report"}  # the report shows the config


def test_without_an_ensemble_no_key_knows_of_it(tmp_path):
    path = make_config(tmp_path)
    steps = plan(load_config(path))
    assert steps == plan(load_config(path, ["ensemble=[]"]))
    assert not any("ensemble" in inputs or ":2" in str(inputs) for *_, inputs in steps.values())
    # Whatever does not learn from the further teacher is what it was without it.
    other = plan(load_config(path, [f"ensemble=[{{model: {tmp_path / 'encoder'}}}]"]))
    soft = {"student:ranker_distill:tiny", "student:lm_distill_ranker_distill:tiny"}
    changed = {name for name in steps if steps[name] != other[name]}
    assert changed == soft | {"evaluation", "report"}
    for name in soft | {"evaluation"}:  # by their inputs alone
        assert steps[name][:3] == other[name][:3]


def test_further_teachers_are_scored_alone_and_joined(tmp_path):
    path = make_config(tmp_path)
    same = f"{{model: {tmp_path / 'encoder'}, train: {{lr: 0.1}}}}"
    other = f"{{model: {make_encoder(tmp_path / 'other', words=50)}}}"
    steps = plan(load_config(path, [f"ensemble=[{same}, {other}]"]))
    before, after = list(steps).index("teacher"), list(steps).index("lm:tiny")
    assert list(steps)[:before] == ["dataset", "tokens", "tokens:2", "tokens:3"]
    assert list(steps)[before:after] == [
        *("teacher", "teacher:2", "teacher:3"),
        *("scores", "scores:2", "scores:3", "ensemble"),
    ]
    # One tokenizer is one key, and so one artifact.
    assert steps["tokens:2"] == steps["tokens"] != steps["tokens:3"]
    assert steps["scores:3"][3] == {
        "dataset": "dataset",
        "tokens": "tokens:3",
        "teacher": "teacher:3",
    }
    assert list(steps["ensemble"][3]) == ["scores", "scores:2", "scores:3"]
    assert steps["ensemble"][2] == {"shards": 2}
    for strategy, scores in (("ranker_distill", "ensemble"), ("lm_distill_finetune", None)):
        assert steps[f"student:{strategy}:tiny"][3].get("scores") == scores
    teachers = [steps[name][2] for name in ("teacher", "teacher:2", "teacher:3")]
    assert [key["seed"] for key in teachers] == [13, 14, 15]
    assert teachers[1]["train"]["lr"] == 0.1
    evaluated = [r for r in steps["evaluation"][3] if not r.startswith("student:")]
    roles = [f"{role}{n}" for role in ("tokens", "teacher") for n in ("", ":2", ":3")]
    assert evaluated == ["dataset", *roles, "ensemble"]


def test_whether_a_query_may_find_itself_is_part_of_a_datasets_key(tmp_path):
    path = make_config(tmp_path)
    drop, keep = (
        plan(load_config(path, [f"prepare.query_as_passage={what}"])) for what in ("drop", "keep")
    )
    assert plan(load_config(path)) == drop
    changed = {name for name in drop if drop[name] != keep[name]}
    assert changed == {"dataset", "report"}  # all others by their inputs


def test_a_transfer_has_tokens_for_every_teacher(tmp_path):
    other = f"{{model: {make_encoder(tmp_path / 'other', words=50)}}}"
    path = make_config(tmp_path)
    source = f"{{type: beir, path: {tmp_path / 'beir'}}}"
    config = load_config(path, [f"ensemble=[{other}]", f"transfer={{far: {{source: {source}}}}}"])
    steps = plan(config)
    assert steps["tokens@far:2"][3] == {"dataset": "dataset@far"}
    assert steps["tokens@far:2"][2] != steps["tokens@far"][2]
    roles = {"dataset@far", "tokens@far", "tokens@far:2", "tokens:2", "teacher:2", "ensemble"}
    assert roles <= steps["evaluation"][3].keys()


def test_a_transfer_may_be_named_by_a_number(tmp_path):
    other = f"{{model: {make_encoder(tmp_path / 'other', words=50)}}}"
    path = make_config(tmp_path)
    source = f"{{type: beir, path: {tmp_path / 'beir'}}}"
    config = load_config(path, [f"ensemble=[{other}]", f"transfer={{2: {{source: {source}}}}}"])
    steps = plan(config)
    assert {"tokens:2", "tokens@2", "tokens@2:2", "dataset@2"} <= steps.keys()
    assert steps["tokens@2"][3] == {"dataset": "dataset@2"}
    assert steps["tokens:2"][3] == {"dataset": "dataset"}


def test_extra_text_may_lie_below_the_home(tmp_path, monkeypatch):
    (tmp_path / "more.jsonl").write_text('{"text": "more"}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    path = make_config(tmp_path)
    keys = [
        plan(load_config(path, [f"prepare.extra_text=[{place}]"]))["tokens"]
        for place in ("~/more.jsonl", tmp_path / "more.jsonl")
    ]
    assert keys[0] == keys[1]
