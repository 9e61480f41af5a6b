"""What Ray Tune is told: which trial is stopped, and what optuna chooses next."""

from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from kdscale.sweep.record import Result
from kdscale.sweep.spec import Search, load_sweep
from kdscale.sweep.trial import settings_for_tune, trial_from_tune
from kdscale.sweep.tuning import _AshaInCells, _Feed
from tests.worlds.world import SHAPES, make_sweep

LR = "ranker.train.lr"


def sweep_of(folder, **search):
    space = {"shape": {"grid": SHAPES}, LR: {"loguniform": [1e-4, 1e-2]}}
    space |= {"strategy": {"grid": ["finetune"]}, "ranker.train.batch_size": {"choice": [4, 8]}}
    return load_sweep(make_sweep(folder, space, search={"type": "random", "samples": 3, **search}))


class Asks:
    """A listener whose budget allows so many trials."""

    def __init__(self, allowed):
        self.allowed, self.begun = allowed, []

    def may_start(self):
        return len(self.begun) < self.allowed

    def choose(self, trial):
        return trial

    def started(self, trial):
        self.begun.append(trial)


def test_trials_are_handed_out_in_order_until_the_budget_is_used(tmp_path):
    trials = sweep_of(tmp_path).trials
    listener = Asks(2)
    feed = _Feed(trials, listener)
    given = [feed.suggest("a"), feed.suggest("b")]
    assert [trial_from_tune(config) for config in given] == trials[:2] == listener.begun
    assert feed.suggest("c") == Searcher.FINISHED
    feed = _Feed(trials[:1], Asks(9))
    assert [feed.suggest("a")["id"], feed.suggest("b")] == ["0001", Searcher.FINISHED]


def test_asha_compares_within_a_cell_alone(tmp_path):
    trials = {}
    for trial in sweep_of(tmp_path).trials:
        told = SimpleNamespace(trial_id=trial.id, config=settings_for_tune(trial))
        trials.setdefault(trial.shape, []).append(told)
    asha = _AshaInCells(Search(scheduler="asha", grace=0.25, factor=3.0))

    def look(trial, progress, dev):
        return asha.on_trial_result(None, trial, {"progress": progress, "dev": dev})

    for of_shape in trials.values():
        for trial in of_shape:
            asha.on_trial_add(None, trial)
    narrow, wide = trials["narrow"], trials["wide"]
    assert look(wide[0], 30, 0.9) == "CONTINUE"
    assert look(narrow[0], 30, 0.1) == "CONTINUE"  # the best of its own
    assert look(narrow[1], 10, 0.05) == "CONTINUE"  # every trial has its grace
    assert look(narrow[1], 30, 0.05) == "STOP"
    assert look(narrow[2], 30, 0.2) == "CONTINUE"
    assert look(narrow[2], 80, 0.3) == "CONTINUE"
    assert look(narrow[0], 80, 0.25) == "STOP"
    assert asha.on_trial_result(None, wide[0], {"loss": 1.0}) == "CONTINUE"  # not a look


def test_optuna_learns_in_each_cell_and_from_an_earlier_session(tmp_path):
    pytest.importorskip("optuna")
    from kdscale.sweep.tuning import Chooser

    sweep = sweep_of(tmp_path, type="optuna", samples=12)
    assert sweep.trials[0].settings == {LR: None, "ranker.train.batch_size": None}
    trials = [t for t in sweep.trials if t.shape == "narrow"]

    def worth(trial):  # a small rate is best
        return 1 - trial.settings[LR]

    first, known = Chooser(sweep.axes, 0), []
    for trial in trials[:6]:
        chosen = first.ask(trial)
        assert 1e-4 <= chosen.settings[LR] <= 1e-2
        assert chosen.settings["ranker.train.batch_size"] in (4, 8)
        result = Result(trial.id, "finished", chosen.settings, value=worth(chosen))
        first.tell(trial, result)
        known.append((chosen, result))
    stopped = first.ask(trials[6])
    first.tell(trials[6], Result("x", "stopped", stopped.settings))
    again = Chooser(sweep.axes, 0)
    for chosen, result in known:
        again.learn(chosen, result)
    (study,) = again._studies.values()
    assert [t.value for t in study.trials] == [result.value for _, result in known]
    assert again.ask(trials[7]).settings[LR]
    wide = next(t for t in sweep.trials if t.shape == "wide")
    again.ask(wide)
    assert len(again._studies) == 2
