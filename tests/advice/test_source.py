"""Where the table comes from: `kdscale advise` of a file, of a store, of a sweep."""

import pytest

from kdscale.advice import source
from kdscale.advice.candidates import Shared
from kdscale.cli import main
from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import read_trials
from kdscale.store import open_store
from kdscale.sweep.record import Record
from tests.advice.tables import ABOUT, LARGE, SMALL, WHOLE, teacher, write
from tests.worlds.artifacts import nothing, put


def commit_sweep(store, key, created, tables=WHOLE):
    put(store, "sweeps", key, lambda out: write(out / "results.parquet", tables), created=created)


def test_the_newest_sweep_of_a_store(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "new-2", "2026-02-01T00:00:00+00:00")
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    told = ["--latency-ms", "30", "--train-hours", "2", "--update-every", "7d"]
    assert main(["advise", str(tmp_path / "store"), *told]) == 0
    shown = capsys.readouterr().out
    assert "Take lm_distill_ranker_distill/4l-312" in shown and "sweeps/new-2" in shown
    assert "4 settings, 10 rows" in shown


def test_one_sweep_as_its_end_names_it(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "new-2", "2026-02-01T00:00:00+00:00")
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    assert main(["advise", f"{tmp_path}/store/sweeps/old-1/", "--max-drop", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "2 settings" not in shown and "1 settings" in shown and "sweeps/old-1" in shown
    assert main(["advise", f"{tmp_path}/store/sweeps/gone"]) == 1
    said = capsys.readouterr().err
    assert "sweeps/gone has trials" in said and "kdscale artifacts" in said


def test_a_sweep_at_work_comes_before_an_older_one_that_has_ended(tmp_path, capsys):
    store = open_store(str(tmp_path / "store"))
    commit_sweep(store, "old-1", "2026-01-01T00:00:00+00:00", [teacher(), SMALL])
    record = Record(store, "at-work")
    record.begin({})
    record.put_table(list(WHOLE), ABOUT)
    assert source.newest_sweep(store)[2].endswith("sweeps/at-work")
    nothing_yet = Record(store, "just-begun")
    nothing_yet.begin({})
    assert source.newest_sweep(store)[2].endswith("sweeps/at-work")


def test_shared_costs_come_from_the_manifests_of_a_store(tmp_path):
    store = open_store(str(tmp_path))

    def made(kind, key, inputs, **facts):
        put(store, kind, key, nothing, inputs=inputs, facts=facts)

    made("lms", "l", {}, seconds=70.0)
    made("scores", "s", {}, seconds=30.0)
    name = LARGE["artifact"][0].as_py()
    made(*name.split("/"), {"lm": "lms/l", "scores": "scores/s", "dataset": "datasets/gone"})
    made(*SMALL["artifact"][0].as_py().split("/"), {"dataset": "datasets/gone"})
    path = write(tmp_path / "t.parquet")
    costs = source.shared_costs(store, read_trials(path)[0])
    assert costs == {name: Shared(70.0, 30.0), SMALL["artifact"][0].as_py(): Shared()}


def test_no_table_there(tmp_path, capsys):
    assert main(["advise", str(tmp_path / "none.parquet")]) == 1
    assert "no file" in capsys.readouterr().err
    assert main(["advise", str(tmp_path)]) == 1
    assert "no sweep in" in capsys.readouterr().err
    assert main(["advise", str(tmp_path), "--update-every", "7x"]) == 1
    assert "--update-every '7x'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_in_a_bucket(tmp_path, s3_server, capsys):
    from kdscale.store.s3.client import Bucket

    uri = f"s3://{s3_server.bucket}/advise"
    with pytest.raises(KdscaleError, match="no sweep in"):
        source.load(uri)
    commit_sweep(open_store(uri), "k", "2026-01-01T00:00:00+00:00")
    assert main(["advise", uri, "--max-drop", "0.05"]) == 0
    assert "Take lm_distill_ranker_distill/4l-312" in capsys.readouterr().out
    Bucket(uri).put_new("tables/t.parquet", write(tmp_path / "t.parquet").read_bytes())
    assert main(["advise", f"{uri}/tables/t.parquet", "--max-drop", "0.05"]) == 0
    assert "Take lm_distill_ranker_distill/4l-312" in capsys.readouterr().out
    with pytest.raises(KdscaleError, match="there is no"):
        source.load(f"{uri}/none.parquet")
