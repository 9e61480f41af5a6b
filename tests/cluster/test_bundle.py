from pathlib import Path

import pytest
import yaml

from kdscale.cluster import submit as bundle
from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config, to_dict
from kdscale.sweep.spec import load_sweep
from tests.worlds.world import make_config

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SWEEPS = [path for path in FILES if "sweep" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in FILES if path not in SWEEPS]


def test_a_job_is_sent_the_package_the_entry_points_and_one_config(tmp_path):
    config = load_config(CONFIGS[0], ["seed=7"])
    size = bundle.build_bundle(to_dict(config), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "jobs", "kdscale"]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert size == sum(p.stat().st_size for p in files) < 2 * bundle.MIB
    assert {p.suffix for p in files} == {".py", ".yaml", ".html", ".css", ".js"}
    assert (tmp_path / "kdscale/report/page.html").is_file()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 7


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_config_that_is_sent_is_the_config(path, tmp_path):
    config = load_config(path)
    bundle.build_bundle(to_dict(config), tmp_path)
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_sweep_that_is_sent_is_the_sweep(path, tmp_path):
    sweep = load_sweep(path)
    bundle.build_bundle(sweep.document(), tmp_path)
    sent = load_sweep(tmp_path / "config.yaml")
    assert sent.identity() == sweep.identity() and sent.trials == sweep.trials


def test_a_job_above_rays_limit_is_refused_with_what_is_large(tmp_path, monkeypatch):
    config = load_config(make_config(tmp_path))
    monkeypatch.setattr(bundle, "LIMIT_BYTES", bundle.MIB // 8)
    (tmp_path / "out").mkdir()
    with pytest.raises(KdscaleError, match=r"Ray takes 0; move out of kdscale/\S+ \(0 MiB\), "):
        bundle.build_bundle(to_dict(config), tmp_path / "out")


def test_an_installation_without_entry_points(tmp_path, monkeypatch):
    (tmp_path / "kdscale").mkdir()
    monkeypatch.setattr("kdscale.__file__", str(tmp_path / "kdscale" / "__init__.py"))
    with pytest.raises(KdscaleError, match="install kdscale from a clone"):
        bundle.build_bundle(to_dict(load_config(CONFIGS[0])), tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("source.path=beir", "source.path: 'beir' is relative"),
        ("source={type: trec, documents: [/a, docs/*.gz]}", r"source.documents[1]: 'docs/*.gz'"),
        ("source={type: msmarco, collection: /c, qrels: {dev: q}}", "source.qrels.dev: 'q' is"),
        ("source={type: msmarco, collection: /c, triples: t.tsv}", "source.triples: 't.tsv'"),
        ("transfer={far: {source: {type: beir, path: far}}}", "transfer.far.source.path: 'far'"),
        ("prepare.extra_text=[~/more.jsonl, more.jsonl]", "prepare.extra_text[1]: 'more.jsonl'"),
        ("report.trials=trials.parquet", "report.trials: 'trials.parquet' is relative"),
        ("teacher.model=owner/name", "teacher.model: 'owner/name' is a folder here"),
        ("ensemble=[{model: ./owner/name}]", "ensemble[0].model: './owner/name' is a folder"),
    ],
)
def test_a_path_that_only_this_directory_knows_is_not_sent(tmp_path, monkeypatch, override, key):
    path = make_config(tmp_path)
    bundle.check_paths(load_config(path))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdscaleError) as error:
        bundle.check_paths(load_config(path, [override]))
    assert key in str(error.value) and "absolute path" in str(error.value)


@pytest.mark.parametrize("path", [p for p in CONFIGS if "quickstart" not in p.stem], ids=str)
def test_a_config_for_clusters_can_be_sent(path):
    bundle.check_paths(load_config(path))
