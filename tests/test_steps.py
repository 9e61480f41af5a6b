"""The parts of a config that the keys of artifacts are made of."""

from world import make_config

from kdscale.config import Config
from kdscale.configload import load_config
from kdscale.steps import build_steps

PLAIN = {"name": "tiny", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}


def plan(config: Config):
    return {s.name: (s.stage, s.label, s.matters(), s.inputs) for s in build_steps(config).values()}


def test_a_shape_without_an_embedding_width_has_the_keys_it_always_had(tmp_path):
    steps = plan(load_config(make_config(tmp_path, students=[PLAIN])))
    same = plan(load_config(make_config(tmp_path, students=[{**PLAIN, "embedding": 0}])))
    assert steps == same
    students = [name for name in steps if name.startswith(("lm:", "student:"))]
    assert all(steps[name][2]["student"] == PLAIN for name in students)
    assert steps["report"][2]["config"]["students"] == [PLAIN]


def test_an_embedding_width_reruns_its_student_and_nothing_of_the_teacher(tmp_path):
    steps = plan(load_config(make_config(tmp_path, students=[PLAIN])))
    other = plan(load_config(make_config(tmp_path, students=[{**PLAIN, "embedding": 8}])))
    changed = {name for name in steps if steps[name] != other[name]}
    students = {name for name in steps if name.startswith(("lm:", "student:"))}
    assert changed == students | {"report"}  # the report shows the config
