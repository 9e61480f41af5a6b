"""`kdscale export` on a tiny student, with real ONNX Runtime."""

import json
import os
import random
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from export_world import UNUSED, ExportWorld
from sentence_transformers import CrossEncoder
from tiny_models import bert_encoder, random_pairs
from transformers import AutoModelForSequenceClassification

from kdscale.cli import main
from kdscale.data.runs import read_run
from kdscale.errors import KdscaleError
from kdscale.export import forms, judge
from kdscale.export import run as export_run
from kdscale.export.command import parse_shares
from kdscale.export.run import Wanted, export
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import OPSET, OnnxModel, OnnxScorer
from kdscale.models.ranker import Scorer, load_ranker, save_ranker
from kdscale.progress import Reporter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ExportWorld(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def pulled(world, tmp_path_factory):
    """The student in a folder of its own, as kdscale pull leaves it."""
    return shutil.copytree(world.student.path, tmp_path_factory.mktemp("pulled") / "student")


def ids(encoder, count=25, seed=4):
    pairs = random_pairs(random.Random(seed), count, 25)
    return [tuple(encoder.tokenise(list(pair))) for pair in pairs]


def torch_scores(folder, pairs):
    return Scorer(load_ranker(folder), PairEncoder.load(folder), 256).score(pairs)


def onnx_scores(folder, pairs):
    return OnnxScorer(folder, PairEncoder.load(folder), 256).score(pairs)


def metrics_of(folder):
    return json.loads((folder / "export.json").read_text())


def forms_of(folder):
    return {row["form"]: row for row in metrics_of(folder)["forms"]}


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert main(["export", world.student.uri, "-o", str(out), "--onnx"]) == 0
    return out


def test_onnx_has_the_scores_of_torch_for_any_batch_and_length(plain):
    pairs = ids(PairEncoder.load(plain))
    expected = torch_scores(plain, pairs)
    assert expected.std() > 1e-2
    for part in (pairs, pairs[:1], pairs[3:5]):
        found = onnx_scores(plain, part)
        assert np.allclose(found, torch_scores(plain, part), atol=1e-4, rtol=0)
    assert onnx_scores(plain, []).shape == (0,)


def test_every_file_of_an_export_has_the_mode_of_the_umask(plain):
    mask = os.umask(0)
    os.umask(mask)
    modes = {p.name: p.stat().st_mode & 0o777 for p in plain.rglob("*") if p.is_file()}
    assert {"model.safetensors", "model.onnx"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~mask}
    assert plain.stat().st_mode & 0o777 == 0o777 & ~mask


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


def test_int8_that_loses_too_much_is_refused_with_the_figures(world, tmp_path, monkeypatch, capsys):
    # Of this tiny student int8 loses next to nothing, so the bound is set below that.
    monkeypatch.setattr(export_run, "MAX_INT8_LOSS", -1.0)
    out = tmp_path / "out"
    command = ["export", world.student.uri, "-o", str(out), "--onnx", "--int8"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "int8 lowers nDCG@10 on dev from 0." in told and "--force" in told
    assert not list(tmp_path.iterdir())
    assert main([*command, "--force"]) == 0
    assert metrics_of(out)["int8"]["forced"] is True


def test_pruned_and_trimmed_it_is_still_a_ranker_and_both_forms_agree(world, tmp_path):
    out = tmp_path / "out"
    wanted = Wanted(onnx=True, heads=0.5, ffn=0.5, min_count=1, recovery_steps=2)
    metrics = export(world.student.uri, out, wanted, Reporter())
    assert [row["form"] for row in metrics["forms"]] == ["student", "smaller", "onnx"]
    assert sum(len(heads) for heads in metrics["pruned"]["heads_kept"]) == 4  # of 8
    assert metrics["pruned"]["neurons_kept"] == 24 and metrics["pruned"]["recovery"]["steps"] == 2
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.intermediate_size == 24
    assert model.config.vocab_size == metrics["vocabulary"]["tokens"]
    assert metrics["vocabulary"]["tokens"] <= metrics["vocabulary"]["before"] - UNUSED
    encoder = PairEncoder.load(out)
    pairs = ids(encoder)
    assert np.allclose(onnx_scores(out, pairs), torch_scores(out, pairs), atol=1e-4)
    # The heads are gone from the ONNX form, whose products are narrower; the other has them as
    # zeros.
    shapes = [tuple(t.dims) for t in onnx.load(out / "model.onnx").graph.initializer]
    kept = [6 * len(heads) for heads in metrics["pruned"]["heads_kept"]]
    for width in kept:
        assert (24, width) in shapes or (width, 24) in shapes
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (24, 24)


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


def test_recovery_trains_on_the_teachers_scores(world, tmp_path):
    untouched, trained = tmp_path / "a", tmp_path / "b"
    for out, steps in ((untouched, 0), (trained, 3)):
        wanted = Wanted(ffn=0.5, recovery_steps=steps)
        export(world.student.uri, out, wanted, Reporter())
    assert "recovery" not in metrics_of(untouched)["pruned"]
    encoder = PairEncoder.load(trained)
    pairs = ids(encoder)
    assert not np.allclose(torch_scores(untouched, pairs), torch_scores(trained, pairs), atol=1e-3)


@pytest.mark.parametrize("data", ["store", "dataset"])
def test_a_pulled_student_is_exported_with_data(world, pulled, tmp_path, data):
    uri = {"store": world.store.uri, "dataset": world.dataset.uri}[data]
    out = tmp_path / "out"
    assert main(["export", str(pulled), "-o", str(out), "--onnx", "--data", uri]) == 0
    assert metrics_of(out)["dataset"]["digest"] == world.dataset.digest


def test_rank_with_onnx_gives_the_scores_of_torch(plain, world, tmp_path):
    for name, texts in (("q", world.queries["test"]), ("p", world.passages)):
        lines = [f"{key}\t{text}\n" for key, text in texts.items()]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    run = tmp_path / "bm25.trec"
    run.write_text(
        "".join(
            f"{qid} Q0 {pid} {rank} {100 - rank} bm25\n"
            for qid, pids in world.candidates["test"].items()
            for rank, pid in enumerate(pids, 1)
        )
    )
    scores = {}
    for backend in ("torch", "onnx"):
        out = tmp_path / f"{backend}.trec"
        command = ["rank", str(plain), "--queries", str(tmp_path / "q.tsv"), "--passages"]
        command += [str(tmp_path / "p.tsv"), "--run", str(run), "-o", str(out)]
        assert main([*command, "--backend", backend]) == 0
        scores[backend] = {(q, p): s for q, ranking in read_run(out) for p, s in ranking}
    assert scores["torch"].keys() == scores["onnx"].keys()
    for key, score in scores["torch"].items():
        assert scores["onnx"][key] == pytest.approx(score, abs=1e-4)


def test_an_onnx_model_can_be_given_threads(plain):
    pairs = ids(PairEncoder.load(plain), 3)
    batch = PairEncoder.load(plain).collate(pairs)
    one, two = (OnnxModel(plain, threads)(**batch) for threads in (1, 2))
    assert np.allclose(one, two, atol=1e-5)


# What is refused, each kind in one line.


def refused(*arguments, match, uri, out):
    with pytest.raises(KdscaleError, match=match):
        export(str(uri), out, *arguments, Reporter())
    assert not out.exists() or list(out.iterdir()) == [out / "mine"]
    assert not list(out.parent.glob(".*part"))


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


def test_ranking_without_onnxruntime(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(KdscaleError, match=r"kdscale\[export\]"):
        OnnxModel(plain)


def test_ranking_without_a_model_onnx(world):
    with pytest.raises(KdscaleError, match=r"has no model.onnx; write one: kdscale export"):
        OnnxModel(world.student.path)


def test_ranking_with_a_damaged_model_onnx(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(KdscaleError, match=r"cannot read .*export it again"):
        OnnxModel(tmp_path)


def test_ranking_with_an_onnx_model_that_is_no_ranker(tmp_path):
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    path = tmp_path / "model.onnx"
    torch.onnx.export(Doubled(), (torch.ones(1),), str(path), dynamo=False, opset_version=OPSET)
    with pytest.raises(KdscaleError, match="gives no logits"):
        OnnxModel(tmp_path)


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


def test_pruning_more_than_there_is(world, tmp_path):
    for wanted, told in (
        (Wanted(heads=0.9), "7 of 8 heads, and each of 2 layers needs one"),
        (Wanted(ffn=1.0), "48 of the 48 neurons"),
    ):
        refused(wanted, match=told, uri=world.student.uri, out=tmp_path / "o")


@pytest.mark.parametrize(
    "text", ["heads", "heads=x", "layers=0.5", "heads=-1", "ffn=nan", "", "ffn=inf"]
)
def test_shares_that_cannot_be_read(text):
    with pytest.raises(KdscaleError, match="--prune: cannot read"):
        parse_shares(text)


def test_shares_are_read():
    assert parse_shares("heads=0.5,ffn=0.25") == {"heads": 0.5, "ffn": 0.25}
    with pytest.raises(KdscaleError, match="--prune: cannot read 'ffn=0'"):
        parse_shares("ffn=0.5,ffn=0")


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


def test_pruning_without_scores_of_the_dataset(world, pulled, tmp_path):
    wanted = Wanted(ffn=0.5, data=world.inputs["dataset"].uri)
    refused(wanted, match="has no teacher's scores of datasets/d", uri=pulled, out=tmp_path / "o")


def test_a_dataset_without_a_dev_split(world, pulled, tmp_path):
    def write(out):
        world._write_dataset(out)
        (out / "stats.json").write_text(json.dumps({"splits": ["test"]}))

    dataset = world.commit("datasets", "no-dev", write)
    try:
        wanted = Wanted(onnx=True, data=dataset.uri)
        refused(wanted, match="no split 'dev'", uri=pulled, out=tmp_path / "o")
    finally:
        shutil.rmtree(dataset.path)


def test_an_onnx_model_with_other_scores_is_not_let_pass(world, tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "SAME_SCORE", 0.0)
    refused(
        Wanted(onnx=True),
        match="from torch's; nothing was written",
        uri=world.student.uri,
        out=tmp_path / "o",
    )


def test_a_roberta_cannot_be_trimmed(world, tmp_path):
    from test_ranker import roberta_encoder
    from tiny_models import roberta_like_tokenizer

    from kdscale.models.ranker import build_ranker

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


def test_few_queries_are_asked(world, monkeypatch):
    monkeypatch.setattr(judge, "QUERIES", 2)
    from kdscale.data.dataset import Dataset

    assert judge.Judge(Dataset(world.dataset.path), Reporter()).terms["queries"] == 2
