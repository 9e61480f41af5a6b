"""Which sweep may start, which may be resumed, and what is said where it may not."""

import subprocess
import sys

import psutil
import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import TRIALS
from kdscale.progress import Reporter
from kdscale.sweep.driver import open_record
from kdscale.sweep.record import begin, process
from kdscale.sweep.spec import load_sweep
from tests.worlds.world import SHAPES, make_sweep

SPACE = {"ranker.train.lr": {"grid": [1e-3]}, "shape": {"grid": SHAPES}}


def start(path, resume=False):
    sweep = load_sweep(path)
    record = open_record(sweep)
    return record, begin(sweep, record, sweep.identity(), resume, Reporter())


def test_a_new_sweep_is_written_down(tmp_path):
    record, begun = start(make_sweep(tmp_path, SPACE))
    assert begun["created"] and record.begun() == begun


def test_what_was_begun_is_not_begun_again_once_something_was_measured(tmp_path):
    path = make_sweep(tmp_path, SPACE)
    record, begun = start(path)
    assert start(path)[1] == begun  # the data and the teacher are found in the store
    record.put_base(TRIALS.empty_table(), {})
    with pytest.raises(KdscaleError, match="has not ended; add --resume to resume it"):
        start(path)
    assert start(path, resume=True)[1] == begun


def test_nothing_to_resume(tmp_path):
    with pytest.raises(KdscaleError, match="no sweep tiny of this file was begun in"):
        start(make_sweep(tmp_path, SPACE), resume=True)


def test_a_file_that_has_changed_is_not_resumed_and_the_change_is_named(tmp_path, capsys):
    path = make_sweep(tmp_path, SPACE)
    first, _ = start(path)
    make_sweep(tmp_path, {**SPACE, "ranker.train.lr": {"grid": [1e-2]}})
    told = rf"since {first.key} was begun: .*lr\.grid was \[0\.001\], is \[0\.01\]; put that back"
    with pytest.raises(KdscaleError, match=told):
        start(path, resume=True)
    second, _ = start(path)  # another sweep
    assert second.key != first.key
    assert f"of an earlier version of this file: {first.uri}" in capsys.readouterr().out


def test_a_sweep_that_another_process_runs_is_left_to_it(tmp_path):
    path = make_sweep(tmp_path, SPACE)
    record, _ = start(path)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(other.pid).create_time()
    record.put_table([], {"process": {**process(), "pid": other.pid, "began": began}})
    with pytest.raises(KdscaleError, match=f"process {other.pid} is running this sweep"):
        start(path, resume=True)
    other.communicate(b"\n")
    start(path, resume=True)
