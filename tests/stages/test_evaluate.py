import io
import json
import math

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdscale.data.schema import METRICS
from kdscale.errors import KdscaleError
from kdscale.evaluation.results import _row
from kdscale.report.table import results_table
from kdscale.stages.evaluate import run
from tests.worlds.ids import step_id
from tests.worlds.small_world import DEPTH, MAX_LENGTH, SmallWorld

SYSTEMS = ["bm25", "teacher", "ranker_distill/tiny", "lm_distill_finetune/tiny"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return SmallWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """The output directory and facts of one evaluation of both splits."""
    out = tmp_path_factory.mktemp("evaluation")
    return out, run(world.context(out, splits=["test", "dev"], measures=["RR@10", "AP"]))


def trec_lines(path):
    return [line.split() for line in path.read_text().splitlines()]


def means(out):
    table = pq.read_table(out / "metrics.parquet").to_pylist()
    groups = {}
    for row in table:
        groups.setdefault((row["split"], row["system"], row["measure"]), {})[row["qid"]] = row[
            "value"
        ]
    return groups


def test_runs_are_of_every_system_and_split(done):
    out, facts = done
    files = {p.relative_to(out / "runs").as_posix() for p in (out / "runs").rglob("*.trec")}
    tags = [s.replace("/", "--") for s in SYSTEMS]
    assert files == {f"{split}/{tag}.trec" for split in ("test", "dev") for tag in tags}
    assert facts["systems"] == 4 and facts["queries"] == {"test": 12, "dev": 3}
    assert facts["pairs"] == {"test": 10 * DEPTH + 3, "dev": 3 * DEPTH}


def test_a_run_is_the_candidates_in_the_models_order(done, world):
    out, _ = done
    lines = trec_lines(out / "runs/test/ranker_distill--tiny.trec")
    path = world.inputs[step_id("student:ranker_distill:tiny")].path
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    by_query = {}
    for qid, q0, pid, rank, score, tag in lines:
        assert (q0, tag) == ("Q0", "ranker_distill--tiny")
        by_query.setdefault(qid, []).append((pid, int(rank), float(score)))
    assert list(by_query) == [q for q in world.queries["test"] if q != "test-q3"]
    for qid, rows in by_query.items():
        assert sorted(pid for pid, _, _ in rows) == sorted(world.candidates["test"][qid])
        assert [rank for _, rank, _ in rows] == list(range(1, len(rows) + 1))
        scores = [score for _, _, score in rows]
        assert scores == sorted(scores, reverse=True)
        with torch.no_grad():
            for pid, _, score in rows:
                texts = world.queries["test"][qid], world.passages[pid]
                inputs = tokenizer(*texts, truncation=True, return_tensors="pt")
                assert model(**inputs).logits.item() == pytest.approx(score, abs=1e-4)


def test_bm25_keeps_the_order_of_the_candidates(done, world):
    lines = trec_lines(done[0] / "runs/test/bm25.trec")
    expected = [(q, p) for q, pids in world.candidates["test"].items() for p in pids]
    assert [(line[0], line[2]) for line in lines] == expected
    assert float(lines[0][4]) == 19.75


def test_metrics_are_those_of_the_run_files(done, world):
    out, _ = done
    assert pq.read_schema(out / "metrics.parquet").names == METRICS.names
    groups = means(out)
    assert len(groups) == 2 * 4 * 3  # nDCG@10, the primary measure, is added
    for (split, system, measure), values in groups.items():
        path = out / "runs" / split / f"{system.replace('/', '--')}.trec"
        found = {qid: 0.0 for qid in world.qrels[split]}
        for metric in ir_measures.iter_calc(
            [ir_measures.parse_measure(measure)],
            world.qrels[split],
            list(ir_measures.read_trec_run(str(path))),
        ):
            found[metric.query_id] = metric.value
        assert values == pytest.approx(found)
    assert groups["test", "teacher", "AP"]["test-q3"] == 0.0  # judged, nothing found


def test_systems_json(done, world):
    out, _ = done
    rows = json.loads((out / "systems.json").read_text())
    assert [row["system"] for row in rows] == SYSTEMS
    by_name = {row["system"]: row for row in rows}
    student, bm25 = by_name["ranker_distill/tiny"], by_name["bm25"]
    assert (student["strategy"], student["student"]) == ("ranker_distill", "tiny")
    artifact = world.inputs[step_id("student:ranker_distill:tiny")]
    assert (student["artifact"], student["digest"]) == (artifact.name, artifact.digest)
    assert student["bytes"] == (artifact.path / "model.safetensors").stat().st_size
    length, h, i = MAX_LENGTH, 16, 32
    layer = 8 * length * h * h + 4 * length * h * i + 4 * length * length * h
    assert student["flops_per_pair"] == layer + 2 * h * h + 2 * h
    assert 0 < student["embedding_parameters"] < student["parameters"]
    assert bm25["parameters"] is bm25["latency"] is bm25["speedup"] is None
    groups = means(out)
    for row in rows:
        for split, of_split in row["measures"].items():
            for measure, mean in of_split.items():
                values = list(groups[split, row["system"], measure].values())
                assert mean == pytest.approx(np.mean(values))


def test_tests_are_against_the_teacher_and_corrected_over_all_systems(done):
    out, _ = done
    rows = {row["system"]: row for row in json.loads((out / "systems.json").read_text())}
    groups = means(out)
    assert rows["teacher"]["tests"] == {"test": {}, "dev": {}}
    others = [s for s in SYSTEMS if s != "teacher"]
    tests = {s: rows[s]["tests"]["test"]["AP"] for s in others}
    for system, test in tests.items():
        mine, teacher = groups["test", system, "AP"], groups["test", "teacher", "AP"]
        delta = np.array([mine[q] - teacher[q] for q in teacher])
        t = delta.mean() / (delta.std(ddof=1) / math.sqrt(len(delta)))
        # Two-sided p of Student's t with 11 degrees of freedom, integrated numerically.
        x = np.linspace(abs(t), 400, 2_000_001)
        scale = math.gamma(6) / (math.sqrt(11 * math.pi) * math.gamma(5.5))
        density = scale * (1 + x * x / 11) ** -6
        p = 2 * (density[:-1] + density[1:]).sum() / 2 * (x[1] - x[0])
        assert test["p"] == pytest.approx(p, rel=1e-4)
        assert test["delta"] == pytest.approx(delta.mean())
        assert (test["n"], test["baseline"]) == (12, "teacher")
        assert test["wins"] + test["losses"] + test["ties"] == 12
    smallest = min(others, key=lambda s: tests[s]["p"])
    assert tests[smallest]["p_holm"] == pytest.approx(min(1, 3 * tests[smallest]["p"]))


def test_latency(done):
    out, _ = done
    rows = {row["system"]: row for row in json.loads((out / "systems.json").read_text())}
    latency = json.loads((out / "latency.json").read_text())
    assert (latency["threads"], latency["queries"], latency["candidates"]) == (1, 3, DEPTH)
    assert latency["hardware"]["cpu"] and latency["max_length"] == MAX_LENGTH
    assert set(latency["systems"]) == set(SYSTEMS) - {"bm25"}
    for system, parts in latency["systems"].items():
        assert [len(values) for values in parts.values()] == [3, 3, 3]
        row = rows[system]["latency"]
        assert row["total_ms"]["median"] == pytest.approx(np.median(parts["total_ms"]), abs=2e-3)
        assert row["candidates"] == DEPTH and row["threads"] == 1
    assert rows["teacher"]["speedup"] == rows["teacher"]["speedup_forward"] == 1.0
    student = latency["systems"]["ranker_distill/tiny"]
    ratio = np.median(latency["systems"]["teacher"]["total_ms"]) / np.median(student["total_ms"])
    assert rows["ranker_distill/tiny"]["speedup"] == pytest.approx(ratio, rel=0.02)


def test_depth_cuts_the_candidates(world, tmp_path):
    run(world.context(tmp_path, splits=["dev"], depth=2, latency_queries=1))
    lines = trec_lines(tmp_path / "runs/dev/teacher.trec")
    expected = {(q, p) for q, pids in world.candidates["dev"].items() for p in pids[:2]}
    assert {(line[0], line[2]) for line in lines} == expected


def test_a_smaller_depth_is_what_reranking_so_many_gives(world, tmp_path):
    few = {"splits": ["dev"], "latency_queries": 1, "measures": ["RR@10", "nDCG@10"]}
    run(world.context(tmp_path / "all", depths=[2, 5], **few))
    run(world.context(tmp_path / "two", depth=2, **few))
    rows = pq.read_table(tmp_path / "all/depths.parquet").to_pylist()
    assert {row["depth"] for row in rows} == {2, 5, DEPTH} and len(rows) == 3 * 2 * len(SYSTEMS)
    found = {(r["system"], r["measure"], r["depth"]): r for r in rows}
    for depth, folder in ((2, "two"), (DEPTH, "all")):
        for row in json.loads((tmp_path / folder / "systems.json").read_text()):
            for measure, value in row["measures"]["dev"].items():
                shown = found[row["system"], measure, depth]
                assert shown["value"] == value
                test = row["tests"]["dev"].get(measure)
                assert shown["delta"] == (test and test["delta"])
                assert shown["ci_low"] == (test and test["ci"][0])


def test_kinds_of_queries_are_of_the_primary_split(done, world):
    out, _ = done
    features = pq.read_table(out / "query_features.parquet").to_pylist()
    assert [f["qid"] for f in features] == list(world.qrels["test"])
    for row in features:
        ranks = [
            rank
            for rank, pid in enumerate(world.candidates["test"][row["qid"]], 1)
            if pid in world.qrels["test"][row["qid"]]
        ]
        assert row["rank"] == (ranks[0] if ranks else None)
    types = pq.read_table(out / "query_types.parquet").to_pylist()
    assert {row["system"] for row in types} == {s for s in SYSTEMS if "/" in s}
    groups = means(out)
    for system in {row["system"] for row in types}:
        lengths = [r for r in types if (r["system"], r["feature"]) == (system, "length")]
        assert sum(row["queries"] for row in lengths) == 12
        lost = sum(row["queries"] * row["loss"] for row in lengths)
        mine, teacher = groups["test", system, "nDCG@10"], groups["test", "teacher", "nDCG@10"]
        assert lost == pytest.approx(sum(teacher[q] - mine[q] for q in teacher))


def test_only_the_primary_measure_is_tested_for_being_no_worse(done):
    out, _ = done
    rows = {row["system"]: row for row in json.loads((out / "systems.json").read_text())}
    tests = rows["ranker_distill/tiny"]["tests"]["dev"]
    assert tests["nDCG@10"]["margin"] == 0.01 and "noninferior" in tests["nDCG@10"]
    assert "noninferior" not in tests["AP"]


def test_another_baseline(world, tmp_path):
    run(world.context(tmp_path, splits=["dev"], baseline="bm25", latency_queries=1))
    rows = {row["system"]: row for row in json.loads((tmp_path / "systems.json").read_text())}
    assert rows["bm25"]["tests"] == {"dev": {}}
    assert rows["teacher"]["tests"]["dev"]["AP"]["baseline"] == "bm25"


def test_each_split_has_its_own_measures_and_primary_one(world, tmp_path):
    facts = run(
        world.context(
            tmp_path,
            splits=["test", "dev"],
            measures={"default": ["AP"], "dev": ["RR(rel=2)@10"]},
            primary={"default": "nDCG@10", "dev": "RR(rel=2)@10"},
            latency_queries=1,
        )
    )
    systems = json.loads((tmp_path / "systems.json").read_text())
    bm25, teacher = systems[:2]
    assert list(bm25["measures"]["test"]) == ["nDCG@10", "AP"]
    assert list(bm25["measures"]["dev"]) == ["RR(rel=2)@10"]
    assert "noninferior" in bm25["tests"]["test"]["nDCG@10"]
    assert "noninferior" not in bm25["tests"]["test"]["AP"]
    assert "noninferior" in bm25["tests"]["dev"]["RR(rel=2)@10"]
    assert {(s, m) for s, _, m in means(tmp_path)} == {
        ("test", "nDCG@10"), ("test", "AP"), ("dev", "RR(rel=2)@10")
    }  # fmt: skip
    # The command's rows and its table take each split's own, by the settings in the manifest.
    row = _row(bm25, facts["primary"])
    assert row["dev p"] == bm25["tests"]["dev"]["RR(rel=2)@10"]["p"]
    assert row["test p"] == bm25["tests"]["test"]["nDCG@10"]["p"]
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table(systems, facts["primary"], "teacher"))
    printed = console.file.getvalue()
    assert "Δ and p: nDCG@10 against teacher" in printed
    assert "Δ and p: RR(rel=2)@10 against teacher" in printed
    assert f"{teacher['measures']['dev']['RR(rel=2)@10']:.3f}" in printed


def test_a_grade_that_a_measure_cannot_take_is_told_before_any_work(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdscale.evaluation.measures.GDEVAL_GRADE", 0)
    with pytest.raises(KdscaleError, match=r"ERR@10: query .* knows grades up to 0"):
        run(world.context(tmp_path, measures=["ERR@10"]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ["tset"]}, r"no split 'tset', only dev, test"),
        ({"splits": []}, r"evaluate.splits is empty"),
        ({"measures": ["nDGC@10"]}, r"unknown measure 'nDGC@10'.*nDCG@10"),
        ({"baseline": "bm52"}, r"no system 'bm52', only bm25, teacher, ranker_distill/tiny"),
    ],
)
def test_a_mistake_is_told_before_any_work(world, tmp_path, settings, message):
    with pytest.raises(KdscaleError, match=message):
        run(world.context(tmp_path, **settings))
    assert not (tmp_path / "runs").exists()
