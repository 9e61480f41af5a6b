"""Commands with a config, or a whole evaluation, in object storage."""

import shutil

import pytest
from small_world import SmallWorld
from world import make_config

from kdscale.cli import main
from kdscale.configload import load_config
from kdscale.doctor import check_disk, check_store
from kdscale.evaluation.results import load_results
from kdscale.store import LocalStore, open_store


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


def test_doctor_looks_at_a_bucket(tmp_path, s3_uri, cache):
    config = load_config(make_config(tmp_path), [f"storage.uri={s3_uri}"])
    assert check_store(config).detail == f"{s3_uri} can be written to"
    assert check_disk(config).status in ("ok", "warning")
    config = load_config(make_config(tmp_path), ["storage.uri=s3://nobucket/x"])
    assert check_store(config).status == "problem"
    assert "create the bucket" in check_store(config).detail


def test_results_of_a_store_or_of_one_evaluation(tmp_path, s3_uri, cache, capsys):
    from kdscale.stages.evaluate import run

    world = SmallWorld(tmp_path / "world")
    world.commit(
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
