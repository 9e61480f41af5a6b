"""One export as a whole, and what is refused, each kind in one line."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from kdscale.errors import KdscaleError
from kdscale.export.run import Wanted, export
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import save_ranker
from kdscale.progress import Reporter
from tests.export.conftest import forms_of, ids, onnx_scores, refused, torch_scores
from tests.worlds.artifacts import commit
from tests.worlds.small_world import ExportWorld
from tests.worlds.tiny_models import bert_encoder


def test_every_file_of_an_export_has_the_mode_of_the_umask(plain):
    mask = os.umask(0)
    os.umask(mask)
    modes = {p.name: p.stat().st_mode & 0o777 for p in plain.rglob("*") if p.is_file()}
    assert {"model.safetensors", "model.onnx"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~mask}
    assert plain.stat().st_mode & 0o777 == 0o777 & ~mask


def test_compared_with_a_teacher_that_is_not_there(tmp_path):
    wanted = Wanted(onnx=True, teacher=True)
    elsewhere = ExportWorld(tmp_path / "elsewhere")
    shutil.rmtree(elsewhere.teacher.path)
    match = "lacks teachers/wide; leave out --teacher"
    refused(wanted, match=match, uri=elsewhere.student.uri, out=tmp_path / "o")


def test_trimming_alone_changes_no_score_of_dev(world, tmp_path):
    out = tmp_path / "out"
    export(world.student.uri, out, Wanted(min_count=1), Reporter())
    rows = forms_of(out)
    assert rows["smaller"]["nDCG@10"] == rows["student"]["nDCG@10"]
    assert rows["smaller"]["bytes"] < rows["student"]["bytes"]
    assert not (out / "model.onnx").exists()


def test_no_model(tmp_path):
    refused(Wanted(onnx=True), match="does not exist", uri=tmp_path / "x", out=tmp_path / "o")


def test_no_such_student_in_a_store(world, tmp_path):
    uri = f"{world.store.uri}/students/none"
    refused(Wanted(onnx=True), match="does not exist", uri=uri, out=tmp_path / "o")


def test_not_a_ranker(world, tmp_path):
    lm = tmp_path / "lm"
    bert_encoder().save_pretrained(lm)
    world.encoder.save(lm)
    refused(Wanted(onnx=True), match="is no ranker with one logit", uri=lm, out=tmp_path / "o")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_not_installed(world, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    refused(
        Wanted(onnx=True),
        match=rf"{package} is not installed; run: pip install 'kdscale\[export\]'",
        uri=world.student.uri,
        out=tmp_path / "o",
    )


def test_an_output_folder_that_is_not_empty(world, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    (out / "mine").write_text("")
    refused(Wanted(onnx=True), match="is not empty", uri=world.student.uri, out=out)


def test_an_output_that_is_a_file(world, tmp_path):
    out = tmp_path / "o"
    out.write_text("")
    with pytest.raises(KdscaleError, match="is not empty"):
        export(world.student.uri, out, Wanted(onnx=True), Reporter())


def test_nothing_to_do(world, tmp_path):
    refused(Wanted(), match="nothing to do", uri=world.student.uri, out=tmp_path / "o")


def test_int8_without_onnx(world, tmp_path):
    wanted = Wanted(int8=True, min_count=1)
    refused(wanted, match="give --onnx as well", uri=world.student.uri, out=tmp_path / "o")


@pytest.mark.parametrize("changes", [{"min_count": 0}, {"min_count": 1, "recovery_steps": -1}])
def test_counts_that_cannot_be(world, tmp_path, changes):
    refused(Wanted(**changes), match="or more, not", uri=world.student.uri, out=tmp_path / "o")


def test_a_pulled_student_without_data(pulled, tmp_path):
    refused(Wanted(onnx=True), match="give --data STORE", uri=pulled, out=tmp_path / "o")


def test_data_that_is_no_dataset(world, pulled, tmp_path):
    wanted = Wanted(onnx=True, data=f"{world.store.uri}/datasets/none")
    refused(wanted, match="there is no datasets/none in", uri=pulled, out=tmp_path / "o")


def test_a_store_without_datasets(pulled, tmp_path):
    (tmp_path / "empty").mkdir()
    wanted = Wanted(onnx=True, data=str(tmp_path / "empty"))
    refused(wanted, match="lacks the dataset of .* it has none", uri=pulled, out=tmp_path / "o")


def test_a_store_with_several_datasets_and_a_model_that_names_none(world, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(world.student.path, model, ignore=shutil.ignore_patterns("manifest.json"))
    wanted = Wanted(onnx=True, data=world.store.uri)
    refused(wanted, match="it has datasets/.*, datasets/", uri=model, out=tmp_path / "o")


def test_a_dataset_without_a_dev_split(world, pulled, tmp_path):
    def write(out):
        world.write_dataset(out)
        (out / "stats.json").write_text(json.dumps({"splits": ["test"]}))

    dataset = commit(world.store, "datasets", "no-dev", write)
    try:
        wanted = Wanted(onnx=True, data=dataset.uri)
        refused(wanted, match="no split 'dev'", uri=pulled, out=tmp_path / "o")
    finally:
        shutil.rmtree(dataset.path)


def test_a_roberta_cannot_be_trimmed(world, tmp_path):
    from kdscale.models.ranker import build_ranker
    from tests.models.test_ranker import roberta_encoder
    from tests.worlds.tiny_models import roberta_like_tokenizer

    folder = tmp_path / "roberta"
    save_ranker(
        build_ranker(roberta_encoder(), 0.0, 0), PairEncoder(roberta_like_tokenizer(), 24), folder
    )
    wanted = Wanted(min_count=1, data=world.store.uri)
    refused(wanted, match="only of a BERT or ELECTRA", uri=folder, out=tmp_path / "o")
    out = tmp_path / "onnx"
    export(str(folder), out, Wanted(onnx=True, data=world.dataset.uri), Reporter())
    pairs = ids(PairEncoder.load(out))
    assert np.allclose(onnx_scores(out, pairs), torch_scores(out, pairs), atol=1e-4)
