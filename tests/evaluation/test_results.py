import csv
import io
import json

import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluation.results import format_csv, format_json, load_results
from kdscale.stages.evaluate import run
from tests.worlds.artifacts import commit
from tests.worlds.small_world import SmallWorld

PRIMARY = {"evaluate": {"primary": "nDCG@10"}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A store with a real evaluation of two splits, and an older, empty one."""
    world = SmallWorld(tmp_path_factory.mktemp("world"))

    def write(out):
        return run(world.context(out, splits=["test", "dev"], measures=["RR@10"]))

    def write_old(out):
        (out / "systems.json").write_text("[]")

    newer = "2026-05-02T00:00:00+00:00"
    commit(world.store, "evaluations", "new", write, config=PRIMARY, created=newer)
    commit(world.store, "evaluations", "old", write_old, config=PRIMARY)
    return world.store.root


def test_rows_of_the_newest_evaluation(evaluated):
    rows = load_results(str(evaluated))
    assert [row["system"] for row in rows] == [
        "bm25",
        "teacher",
        "ranker_distill/tiny",
        "lm_distill_finetune/tiny",
    ]
    assert list(rows[0]) == [
        "system", "strategy", "student", "parameters", "bytes", "flops_per_pair",
        "test nDCG@10", "test RR@10", "dev nDCG@10", "dev RR@10",
        "latency_ms", "latency_p95_ms", "speedup",
        "test p", "test p_holm",
        "test noninferior_p", "test noninferior_p_holm", "test noninferior",
        "dev p", "dev p_holm",
        "dev noninferior_p", "dev noninferior_p_holm", "dev noninferior",
    ]  # fmt: skip
    systems = json.loads((evaluated / "evaluations/new/systems.json").read_text())
    row, system = rows[2], systems[2]
    assert (row["strategy"], row["student"]) == ("ranker_distill", "tiny")
    assert row["test nDCG@10"] == system["measures"]["test"]["nDCG@10"]
    test = system["tests"]["dev"]["nDCG@10"]
    assert row["dev p_holm"] == test["p_holm"]
    assert row["dev noninferior_p_holm"] == test["noninferior_p_holm"] is not None
    assert row["dev noninferior"] is test["noninferior"] is False
    assert row["latency_p95_ms"] == system["latency"]["total_ms"]["p95"]
    assert rows[1]["test p"] is rows[0]["latency_ms"] is rows[0]["parameters"] is None


def test_an_evaluation_can_be_named(evaluated):
    assert load_results(str(evaluated / "evaluations" / "new")) == load_results(str(evaluated))
    assert load_results(str(evaluated / "evaluations" / "old")) == []
    assert load_results(f"file://{evaluated}") == load_results(str(evaluated))


def test_nothing_there(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(KdscaleError, match=r"no evaluation in .*kdscale evaluate CONFIG"):
            load_results(str(path))


def test_json_and_csv_hold_the_rows(evaluated):
    rows = load_results(str(evaluated))
    assert json.loads(format_json(rows)) == rows
    read = list(csv.DictReader(io.StringIO(format_csv(rows))))
    assert list(read[0]) == list(rows[0])
    for line, row in zip(read, rows, strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in row.items()}
