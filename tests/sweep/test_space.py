"""Search spaces: which trials a sweep file means, and what is refused with one line."""

import pytest
import yaml

from kdscale.cli import main
from kdscale.errors import KdscaleError
from kdscale.sweep import spec as checks
from kdscale.sweep.shared import check_trials, trial_configs
from kdscale.sweep.spec import load_sweep, queries_of
from tests.worlds.world import SHAPES, SPACE, make_sweep

LR = "ranker.train.lr"
BOTH = {"grid": ["finetune", "ranker_distill"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


def load(folder, space, **changes):
    return load_sweep(make_sweep(folder, space, **changes))


def test_a_grid_is_every_combination_in_the_order_of_the_file(folder):
    space = {"shape": {"grid": SHAPES}, "strategy": BOTH, "budget": {"grid": [0.5, 20]}}
    trials = load(folder, space).trials
    assert [t.id for t in trials] == [f"{n:04d}" for n in range(1, 9)]
    assert [t.cell for t in trials[:3]] == [
        ("finetune", "narrow", 0.5, 13),
        ("finetune", "narrow", 20, 13),
        ("finetune", "wide", 0.5, 13),
    ]
    assert {t.variant for t in trials} == {"default"}


def test_an_axis_may_be_of_some_strategies(folder):
    when = {"strategy": ["ranker_distill"]}
    space = {
        "strategy": BOTH,
        "shape": {"grid": SHAPES[:1]},
        "ranker.temperature": {"grid": [1.0, 2.0], "when": when},
        "budget": {"grid": [0.5], "when": when},
    }
    found = [(t.strategy, t.settings, t.budget) for t in load(folder, space).trials]
    assert found == [
        ("finetune", {}, 1.0),
        ("ranker_distill", {"ranker.temperature": 1.0}, 0.5),
        ("ranker_distill", {"ranker.temperature": 2.0}, 0.5),
    ]


def test_what_is_drawn_is_within_its_range_and_the_same_every_time(folder):
    space = {
        "strategy": BOTH,
        "shape": {"grid": SHAPES},
        LR: {"loguniform": ["1e-4", 1e-2]},  # YAML reads 1e-4 as text
        "ranker.soft_losses.margin_mse": {"uniform": [0, 2]},
        "ranker.train.batch_size": {"choice": [4, 8]},
    }
    search = {"type": "random", "samples": 3}
    trials = load(folder, space, search=search).trials
    assert len(trials) == 12 and trials == load(folder, space, search=search).trials
    assert trials != load(folder, space, search=search, seed=1).trials
    # Every cell has its first draw before any has a second.
    assert len({t.cell for t in trials[:4]}) == 4
    more = load(folder, space, search={**search, "samples": 4}).trials
    assert more[:12] == trials
    for trial in trials:
        assert 1e-4 <= trial.settings[LR] <= 1e-2
        assert 0 <= trial.settings["ranker.soft_losses.margin_mse"] <= 2
        assert trial.settings["ranker.train.batch_size"] in (4, 8)
    assert len({t.settings[LR] for t in trials}) == 12


def test_a_trial_is_the_config_with_its_settings(folder):
    space = {
        "strategy": BOTH,
        "shape": {"grid": SHAPES},
        "budget": {"grid": [0.5]},
        "seed": {"grid": [7]},
        LR: {"grid": [3e-3]},
        "lm.losses": {"grid": [{"hidden": 1.0}]},
    }
    sweep = load(folder, space)
    config = sweep.config(sweep.trials[-1], train_queries=60)
    assert [s.name for s in config.students] == ["wide"]
    assert config.ranker.strategies == ["ranker_distill"]
    assert (config.ranker.max_queries, config.ranker.seed) == (30, 7)
    assert config.ranker.train.lr == 3e-3 and config.lm.losses == {"hidden": 1.0}
    assert config.seed == sweep.base.seed  # the data and the teacher are every seed's


def test_the_base_can_be_another_file(folder, tmp_path):
    make_sweep(folder)
    path = tmp_path / "sweep.yaml"
    section = {"space": {LR: {"grid": [1e-3, 1e-2]}}}
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    own = {"students": SHAPES[:1], "ranker": {"group_size": 3}}
    path.write_text(yaml.safe_dump({"base": "config.yaml", **own, "sweep": section}))
    base = load_sweep(path, ["ranker.train.epochs=7", "sweep.seed=3"]).base
    assert base.name == "tiny" and base.ranker.group_size == 3
    assert base.ranker.train.epochs == 7 and base.ranker.train.batch_size == 8


def test_shapes_are_looked_up_beside_the_file(folder, tmp_path):
    path = make_sweep(tmp_path, {"shape": {"grid": ["slim", SHAPES[0]]}})
    (tmp_path / "students").mkdir()
    slim = {"layers": 1, "hidden": 8, "heads": 2, "intermediate": 16}
    (tmp_path / "students" / "slim.yaml").write_text(yaml.safe_dump(slim))
    assert [s.name for s in load_sweep(path).base.students] == ["slim", "narrow"]


GRID = {"grid": [1e-3, 1e-2]}
RANDOM = {"type": "random"}
ASHA = {"scheduler": "asha"}


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ({}, {}, r"sweep\.space is empty"),
        (None, {"search": {"metric": "nDGC@10"}}, r"sweep\.search\.metric: unknown measure"),
        (None, {"search": {"metric": "AP", "kind": 1}}, r"unknown key sweep\.search\.kind"),
        (None, {"search": {"type": "gird"}}, r"sweep\.search\.type: one of .*did you mean grid\?"),
        (None, {"search": {"samples": 0}}, r"sweep\.search\.samples: 1 or more"),
        (None, {"search": {"samples": 2}}, r"a grid has each trial once"),
        (None, {"search": {"concurrent": 0}}, r"sweep\.search\.concurrent: 1 or more"),
        (None, {"search": {"grace": 1.0}}, r"grace: below 1"),
        (None, {"search": RANDOM}, r"every axis is listed by grid"),
        (None, {"search": ASHA}, r"the space varies none"),
        ({LR: GRID, "shape": {"grid": SHAPES}}, {"search": ASHA}, r"set ranker\.watch\.every"),
        (None, {"limits": {"trials": 0}}, r"sweep\.limits\.trials: 1 or more, not 0"),
        (None, {"limits": {"hours": -1}}, r"sweep\.limits\.hours: above 0, not -1"),
        (None, {"limits": {"gpu_hours": 1}}, r"no trial has a GPU"),
        (None, {"limits": {"days": 1}}, r"unknown key sweep\.limits\.days"),
        (None, {"wandb": {}}, r"sweep\.wandb\.project"),
        ({LR: GRID}, {"students": []}, r"no student shapes"),
        ({"shape": {"grid": [{**SHAPES[0], "heads": 3}]}}, {}, r"space\.shape: .*do not divide"),
        ({"shape": {"grid": ["2l-none"]}}, {}, r"space\.shape: students: no shape '2l-none'"),
        ({"strategy": {"grid": ["fintune"]}}, {}, r"no strategy 'fintune'; did you mean finetune"),
        ({"strategie": BOTH}, {}, r"space\.strategie: no axis.*did you mean strategy\?"),
        ({"teacher.train.lr": GRID}, {}, r"data and teacher are one for all trials"),
        ({"ranker.max_queries": {"grid": [3]}}, {}, r"the axis budget sets this"),
        ({"seed": {"choice": [1, 2]}}, {}, r"list its values with grid"),
        ({"seed": {"grid": [-1]}}, {}, r"space\.seed: 0 or more, not -1"),
        ({"budget": {"grid": [1]}}, {}, r"space\.budget: a share .* such as 0\.1 or 1\.0"),
        ({"budget": {"grid": [1.5]}}, {}, r"space\.budget: a share"),
        ({LR: 3}, {}, r"space\.ranker\.train\.lr: write it as"),
        ({LR: {"gird": [1]}}, {}, r"unknown key sweep\.space\.ranker\.train\.lr\.gird"),
        ({LR: {"grid": [1], "choice": [1]}}, {}, r"one of grid, choice, .* not 2 of them"),
        ({LR: {"grid": []}}, {}, r"a list of at least one value"),
        ({LR: {"grid": [1e-3, 1e-3]}}, {}, r"0\.001 stands there twice"),
        ({LR: {"uniform": [2, 1]}}, {}, r"two numbers, the lower one first"),
        ({LR: {"loguniform": [0, 1]}}, {}, r"both above 0"),
        ({LR: {"choice": [1e-3]}}, {}, r"set sweep\.search\.type to random or optuna"),
        ({LR: {"grid": [1e-3], "when": {"shape": ["a"]}}}, {}, r"the one condition there is"),
        ({LR: {"grid": [1e-3], "when": {"strategy": ["x"]}}}, {}, r"when\.strategy: no strategy"),
        ({"shape": {"grid": SHAPES, "when": {}}}, {}, r"every trial has a shape"),
        ({"ranker.train.rl": GRID}, {}, r"space\.ranker\.train\.rl: unknown key"),
        ({LR: {"grid": ["fast"]}}, {}, r"space\.ranker\.train\.lr: .*expected float"),
        ({LR: {"grid": [-1.0]}}, {}, r"space\.ranker\.train\.lr: .*lr: above 0"),
        ({"ranker.soft_losses.mse": GRID}, {}, r"ranker\.soft_losses: no loss 'mse'"),
        (
            {"lm.train.lr": {"loguniform": [1e-4, 1e-3]}, "shape": {"grid": SHAPES}},
            {"search": {"type": "optuna"}},
            r"language models are made before the first trial",
        ),
    ],
)
def test_bad_input(folder, space, changes, message, monkeypatch):
    monkeypatch.setattr(checks, "_need", lambda *told: None)
    with pytest.raises(KdscaleError, match=message):
        load(folder, space, **changes)


def test_a_package_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    space = {LR: {"uniform": [0.1, 0.2]}, "shape": {"grid": SHAPES}}
    with pytest.raises(KdscaleError, match=r"needs the package optuna: pip install"):
        load(folder, space, search={"type": "optuna"})
    with pytest.raises(KdscaleError, match=r"needs the package wandb: pip install"):
        load(folder, None, wandb={"project": "p"})


@pytest.mark.parametrize(
    ("budget", "queries", "message"),
    [(0.001, 60, "too small for one trial: not one query"), (61, 60, "there are 60 to train on")],
)
def test_a_budget_that_the_data_does_not_have(budget, queries, message):
    with pytest.raises(KdscaleError, match=message):
        queries_of(budget, queries)


def test_a_budget_in_queries():
    assert [queries_of(b, 60) for b in (1.0, 0.25, 20)] == [None, 15, 20]


def test_commands_know_what_they_are_given(folder, capsys):
    path = make_sweep(folder)
    assert main(["run", str(path)]) == 1
    assert "use kdscale sweep" in capsys.readouterr().err
    assert main(["sweep", str(folder / "config.yaml")]) == 1
    assert "has no section sweep" in capsys.readouterr().err


def test_a_student_that_cannot_be_made_is_told_before_the_teacher_is_trained(folder, capsys):
    wide = {"name": "too-wide", "layers": 1, "hidden": 64, "heads": 2, "intermediate": 48}
    space = {**SPACE, "shape": {"grid": [SHAPES[0], wide]}}
    path = make_sweep(folder, space)
    assert main(["sweep", str(path), "--dry-run"]) == 1
    assert "size 64 is above the teacher's 32" in capsys.readouterr().err
    with pytest.raises(KdscaleError, match="size 64 is above the teacher's 32"):
        check_trials(trial_configs(load_sweep(path), load_sweep(path).trials, None).values())
