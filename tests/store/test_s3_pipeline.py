"""Commands with a config, or a whole evaluation, in object storage."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from kdscale.cli import main
from kdscale.doctor.experiment import check_store
from kdscale.doctor.run import _disk
from kdscale.evaluation.results import load_results
from kdscale.experiment.context import DATASET
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.progress import Reporter
from kdscale.store import LocalStore, open_store
from tests.worlds.artifacts import commit
from tests.worlds.small_world import SmallWorld
from tests.worlds.world import make_config


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_prepare_into_a_bucket_and_again(tmp_path, s3_uri, raw, ray_cluster, cache, capsys):
    command = ["prepare", str(make_config(tmp_path)), "--set", f"storage.uri={s3_uri}"]
    assert main(command) == 0
    stored = raw.names()
    assert len([n for n in stored if n.endswith("manifest.json") and n.count("/") == 2]) == 2
    capsys.readouterr()
    shutil.rmtree(cache)
    assert main([*command, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["cached"] * 2
    assert main(command) == 0
    assert "nothing to do: every stage is up to date" in capsys.readouterr().out
    assert files_below(cache) == []  # not a file was fetched
    assert raw.names() == stored
    tokens = open_store(s3_uri).list("tokens")[0]
    assert {p.name for p in tokens.path.iterdir()} >= {"manifest.json", "tokenizer"}


@pytest.mark.slow
def test_of_two_runs_of_one_stage_the_loser_says_so(tmp_path, s3_uri, raw, ray_cluster, cache):
    config = load_config(make_config(tmp_path), [f"storage.uri={s3_uri}"])
    shown = [io.StringIO(), io.StringIO()]

    def run(output):
        reporter = Reporter(Console(file=output, soft_wrap=True))
        return run_steps(config, open_store(s3_uri), [DATASET], reporter)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run, shown))
    assert [o.status for steps in outcomes for o in steps] == ["done", "done"]
    one, other = (steps[0].artifact for steps in outcomes)
    said = f"warning: dataset: another process committed {one.key} first; theirs is used"
    assert sorted(output.getvalue().count(said) for output in shown) == [0, 1]
    assert one == other
    below = [name.split("/")[2] for name in raw.names() if name.startswith("datasets/")]
    assert set(below) == {"manifest.json", one.manifest["attempt"]}  # nothing of the loser's


def test_doctor_looks_at_a_bucket(tmp_path, s3_uri, cache):
    config = load_config(make_config(tmp_path), [f"storage.uri={s3_uri}"])
    assert check_store(config).detail == f"{s3_uri} can be written to"
    assert _disk(config) == cache  # where the copies will be
    config = load_config(make_config(tmp_path), ["storage.uri=s3://nobucket/x"])
    assert check_store(config).status == "problem"
    assert "create the bucket" in check_store(config).detail


def test_results_of_a_store_or_of_one_evaluation(tmp_path, s3_uri, cache, capsys):
    from kdscale.stages.evaluate import run

    world = SmallWorld(tmp_path / "world")
    commit(
        world.store,
        "evaluations",
        "new",
        lambda out: run(world.context(out, splits=["test"], measures=["RR@10"])),
        config={"evaluate": {"primary": "nDCG@10", "baseline": "teacher"}},
    )
    made = f"{world.store.uri}/evaluations/new"
    rows = load_results(made)
    assert main(["push", made, f"{s3_uri}/evaluations/new"]) == 0
    assert load_results(s3_uri) == load_results(f"{s3_uri}/evaluations/new") == rows
    pulled = tmp_path / "pulled"
    assert main(["pull", f"{s3_uri}/evaluations/new", str(pulled)]) == 0
    assert load_results(str(pulled)) == rows
    assert isinstance(world.store, LocalStore)
    assert main(["results", f"{s3_uri}/evaluations/none"]) == 1
    assert "no evaluation in" in capsys.readouterr().err
