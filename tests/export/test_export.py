"""The commands `kdscale export`, and `kdscale rank` with what it writes."""

import pytest

from kdscale.cli import main
from kdscale.commands.export import parse_shares
from kdscale.data.runs import read_run
from kdscale.errors import KdscaleError
from kdscale.export import run as export_run
from tests.export.conftest import metrics_of


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
