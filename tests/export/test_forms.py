"""The forms of an export, with real ONNX Runtime."""

import random
import sys

import numpy as np
import onnx
import pytest
from sentence_transformers import CrossEncoder

from kdscale.cli import main
from kdscale.errors import KdscaleError
from kdscale.export import forms
from kdscale.export.run import Wanted, export
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import OPSET, OnnxModel
from kdscale.models.ranker import load_ranker
from kdscale.progress import Reporter
from tests.export.conftest import forms_of, ids, metrics_of, onnx_scores, refused, torch_scores
from tests.worlds.tiny_models import random_pairs


def test_onnx_has_the_scores_of_torch_for_any_batch_and_length(plain):
    pairs = ids(PairEncoder.load(plain))
    expected = torch_scores(plain, pairs)
    assert expected.std() > 1e-2
    for part in (pairs, pairs[:1], pairs[3:5]):
        found = onnx_scores(plain, part)
        assert np.allclose(found, torch_scores(plain, part), atol=1e-4, rtol=0)
    assert onnx_scores(plain, []).shape == (0,)


def test_onnx_is_of_one_opset_with_free_batch_and_length(plain):
    model = onnx.load(plain / "model.onnx")
    assert [entry.version for entry in model.opset_import] == [OPSET]
    for entry in (*model.graph.input, *model.graph.output):
        dims = entry.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch" and (dims[1].dim_param or dims[1].dim_value) in (
            "length",
            1,
        )


def test_what_is_beside_it_is_an_ordinary_ranker_with_its_metrics(plain, world):
    pairs = random_pairs(random.Random(1), 5, 10)
    theirs = CrossEncoder(str(plain), device="cpu").predict(pairs)
    encoder = PairEncoder.load(plain)
    ours = onnx_scores(plain, [tuple(encoder.tokenise(list(pair))) for pair in pairs])
    assert np.allclose(theirs, ours, atol=1e-4)
    metrics = metrics_of(plain)
    assert metrics["student_digest"] == world.student.digest
    assert metrics["dataset"]["digest"] == world.dataset.digest
    assert metrics["split"] == "dev" and metrics["queries"] == 3
    rows = forms_of(plain)
    assert list(rows) == ["student", "onnx"]
    assert rows["student"]["nDCG@10"] == rows["onnx"]["nDCG@10"] > 0
    assert rows["onnx"]["bytes"] == (plain / "model.onnx").stat().st_size
    assert all(row["ms"] > 0 for row in rows.values())
    assert metrics["onnx"]["largest_difference"] < 1e-4


def test_int8_is_smaller_and_stays_near(world, tmp_path, plain):
    out = tmp_path / "out"
    export(world.student.uri, out, Wanted(onnx=True, int8=True, force=True), Reporter())
    rows = forms_of(out)
    assert list(rows) == ["student", "onnx", "int8"]
    kinds = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
    assert "MatMulInteger" in kinds
    metrics = metrics_of(out)
    assert metrics["int8"]["batch_difference"] < 1e-5
    assert metrics["int8"]["largest_difference"] > metrics["onnx"]["largest_difference"]
    pairs = ids(PairEncoder.load(out))
    found, expected = onnx_scores(out, pairs), torch_scores(out, pairs)
    assert not np.array_equal(found, expected)
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert metrics_of(out)["onnx"]["precision"] == "int8"
    assert not list(out.glob("int8-*"))


def test_compared_with_its_teacher(world, tmp_path):
    out = tmp_path / "out"
    command = ["export", world.student.uri, "-o", str(out), "--onnx", "--teacher"]
    assert main(command) == 0
    rows = forms_of(out)
    assert list(rows) == ["teacher", "student", "onnx"]
    teacher = rows["teacher"]
    assert teacher["speedup"] == teacher["share"] == 1
    model = load_ranker(world.teacher.path)
    assert teacher["parameters"] == sum(p.numel() for p in model.parameters())
    assert teacher["nDCG@10"] != rows["student"]["nDCG@10"]
    for row in rows.values():
        assert row["speedup"] == pytest.approx(teacher["ms"] / row["ms"], abs=0.006)
        assert row["share"] == pytest.approx(row["nDCG@10"] / teacher["nDCG@10"], abs=1e-4)


def test_an_onnx_model_can_be_given_threads(plain):
    pairs = ids(PairEncoder.load(plain), 3)
    batch = PairEncoder.load(plain).collate(pairs)
    one, two = (OnnxModel(plain, threads)(**batch) for threads in (1, 2))
    assert np.allclose(one, two, atol=1e-5)


def test_ranking_without_onnxruntime(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KdscaleError, match=r"kdscale\[export\]"):
        OnnxModel(plain)


def test_ranking_without_a_model_onnx(world):
    with pytest.raises(KdscaleError, match=r"has no model.onnx; write one: kdscale export"):
        OnnxModel(world.student.path)


def test_an_onnx_model_with_other_scores_is_not_let_pass(world, tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "SAME_SCORE", 0.0)
    refused(
        Wanted(onnx=True),
        match="from torch's; nothing was written",
        uri=world.student.uri,
        out=tmp_path / "o",
    )


def test_few_queries_are_asked(world, monkeypatch):
    monkeypatch.setattr(forms, "QUERIES", 2)
    from kdscale.data.dataset import Dataset

    assert forms.Judge(Dataset(world.dataset.path), Reporter()).terms["queries"] == 2
