"""`kdscale export`: a student made smaller and faster, beside what that costs it.

Pruned and recovered first, then cut to the corpus's vocabulary, then written as ONNX, then in
int8; each form is measured on dev queries against the student that it was made from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import kdscale
from kdscale.bounds import Count, Natural, check_number
from kdscale.config import Ranker
from kdscale.data.dataset import Dataset
from kdscale.data.queries import TRAIN, choose_queries
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.data.tokenise import TextTokens
from kdscale.errors import KdscaleError
from kdscale.evaluation.latency import hardware
from kdscale.experiment.lineage import (
    Student,
    find_dataset,
    find_scores,
    find_teacher,
)
from kdscale.experiment.lineage import (
    find_ranker as find_student,
)
from kdscale.export.forms import MEASURE, Forms, Judge
from kdscale.export.recovery import BATCH_GROUPS, SAMPLE_GROUPS, group_losses, recover
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import (
    MODEL_FILE,
    OPSET,
    need_onnx,
    write_onnx,
)
from kdscale.models.pruning import (
    Kept,
    check_prunable,
    check_shares,
    choose,
    measure_importance,
    prune,
    with_silent_heads,
)
from kdscale.models.ranker import load_ranker, save_ranker
from kdscale.models.vocabulary import check_trimmable, kept_tokens, trim_vocabulary
from kdscale.paths import allow_by_umask
from kdscale.progress import Reporter
from kdscale.store import Artifact, Store
from kdscale.training.groups import GroupSource

METRICS_FILE = "export.json"
MAX_INT8_LOSS = 0.005  # of MEASURE
SEED = 13  # of the training groups that pruning looks at and recovery trains on


@dataclass(frozen=True)
class Wanted:
    """What is to be done to a student.

    heads, ffn: shares to prune; min_count: the vocabulary keeps tokens of so many occurrences in
    the dataset, None: all tokens; teacher: compare with it, and not with the student alone.
    """

    onnx: bool = False
    int8: bool = False
    heads: float = 0.0
    ffn: float = 0.0
    min_count: int | None = None
    data: str | None = None
    recovery_steps: int = 300
    teacher: bool = False
    force: bool = False

    @property
    def prunes(self) -> bool:
        return self.heads > 0 or self.ffn > 0


def export(uri: str, out: Path, wanted: Wanted, reporter: Reporter) -> dict[str, Any]:
    """Write the export of a student to `out`, which appears when it is complete; its metrics, as
    they are in export.json.

    Raises KdscaleError where something cannot be done, and, unless it is forced, where int8 loses
    more than MAX_INT8_LOSS.
    """
    _check(wanted, out)
    student = find_student(uri)
    model, encoder = load_ranker(student.path), PairEncoder.load(student.path)
    if wanted.prunes:
        check_prunable(model)
        check_shares(model, wanted.heads, wanted.ffn)
    if wanted.min_count is not None:
        check_trimmable(model, encoder)
    artifact, store = find_dataset(student, wanted.data)
    teacher = find_teacher(student, artifact, store).path if wanted.teacher else None
    dataset = Dataset(artifact.path)
    judge = Judge(dataset, reporter)
    metrics: dict[str, Any] = {
        "student": student.name,
        "student_digest": student.manifest and student.manifest["digest"],
        "dataset": {"name": artifact.name, "digest": artifact.digest},
        "measure": MEASURE,
        **judge.terms,
    }
    forms = Forms(judge)
    if teacher is not None:
        forms.add_torch("teacher", load_ranker(teacher), PairEncoder.load(teacher), teacher)
    forms.add_torch("student", load_ranker(student.path), encoder, student.path)
    with _appearing(out) as folder:
        kept = None
        if wanted.prunes:
            kept, metrics["pruned"] = _prune(
                model, encoder, dataset, (student, artifact, store), wanted, reporter
            )
        if wanted.min_count is not None:
            encoder, metrics["vocabulary"] = _trim(
                model, encoder, dataset, wanted.min_count, reporter
            )
        saved = model if kept is None else with_silent_heads(model, kept)
        save_ranker(saved, encoder, folder)
        if wanted.prunes or wanted.min_count is not None:
            forms.add_torch("smaller", saved, encoder, folder)
        if wanted.onnx:
            write_onnx(model, encoder, folder / MODEL_FILE)
            metrics["onnx"] = {"opset": OPSET, "precision": "fp32"}
            metrics["onnx"] |= forms.add_onnx("onnx", encoder, folder, True)
        if wanted.int8:
            metrics["onnx"]["precision"] = "int8"
            metrics["int8"] = _int8(forms, encoder, folder, wanted.force)
        metrics["forms"] = forms.finish(reporter)
        metrics |= {"hardware": hardware(), "kdscale": kdscale.__version__}
        text = json.dumps(metrics, indent=1, allow_nan=False)
        (folder / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
    return metrics


def _check(wanted: Wanted, out: Path) -> None:
    if not (wanted.onnx or wanted.prunes or wanted.min_count is not None):
        raise KdscaleError(
            "export: nothing to do; give --onnx, --prune heads=SHARE,ffn=SHARE or --trim-vocabulary"
        )
    check_number(Count, wanted.min_count, "export: --trim-vocabulary")
    check_number(Natural, wanted.recovery_steps, "export: --recovery-steps")
    if wanted.int8 and not wanted.onnx:
        raise KdscaleError("export: --int8 is a form of ONNX; give --onnx as well")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KdscaleError(f"export: {out} is not empty; give -o a new or empty folder")
    if wanted.onnx:
        need_onnx("onnx", "onnxruntime")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` at the end, and goes where something fails."""
    part = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        allow_by_umask(part)
        os.replace(part, out)
    except OSError as error:
        raise KdscaleError(
            f"export: cannot write {out} ({error.strerror or error}); give -o another folder"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _prune(
    model: PreTrainedModel,
    encoder: PairEncoder,
    dataset: Dataset,
    origin: tuple[Student, Artifact, Store],
    wanted: Wanted,
    reporter: Reporter,
) -> tuple[Kept, dict[str, Any]]:
    scores = read_shards(find_scores(*origin).path, SCORES)
    source = _groups(
        dataset, encoder, scores, max(SAMPLE_GROUPS, wanted.recovery_steps * BATCH_GROUPS)
    )
    weights = Ranker().soft_losses
    count = min(SAMPLE_GROUPS, len(source))
    with reporter.task("importance of heads and neurons", count) as task:

        def counted() -> Iterator[Any]:
            for loss in group_losses(model, source, weights):
                yield loss
                task.advance()

        importance = measure_importance(model, counted())
    kept = choose(importance, wanted.heads, wanted.ffn)
    prune(model, kept)
    facts = {"heads_kept": kept.heads, "neurons_kept": len(kept.neurons[0]), "groups": count}
    if wanted.recovery_steps:
        steps = wanted.recovery_steps
        facts["recovery"] = recover(model, source, weights, steps, SEED, reporter)
    return kept, facts


def _groups(dataset: Dataset, encoder: PairEncoder, scores: Any, count: int) -> GroupSource:
    """Training groups of at most `count` queries."""
    qids = dict.fromkeys(dataset.pairs()["qid"].to_pylist())
    chosen = choose_queries(list(qids), count, SEED)
    tokens = TextTokens(dataset, encoder, {TRAIN: chosen})
    return GroupSource(dataset, tokens, scores, Ranker().group_size, count, SEED)


def _trim(
    model: PreTrainedModel,
    encoder: PairEncoder,
    dataset: Dataset,
    min_count: int,
    reporter: Reporter,
) -> tuple[PairEncoder, dict[str, Any]]:
    before = model.config.vocab_size
    with reporter.task("reading the corpus for its tokens") as task:

        def counted() -> Iterator[list[str]]:
            for texts in dataset.text_batches():
                yield texts
                task.advance(len(texts))

        kept = kept_tokens(encoder, counted(), min_count)
    trimmed = trim_vocabulary(model, encoder, kept)
    return trimmed, {"before": before, "tokens": len(kept), "min_count": min_count}


def _int8(forms: Forms, encoder: PairEncoder, folder: Path, force: bool) -> dict[str, Any]:
    """Put the int8 form in the place of the fp32 one, if it is good enough."""
    from kdscale.models.int8 import write_int8  # it needs onnx

    side = folder / f"int8-{MODEL_FILE}"
    write_int8(folder / MODEL_FILE, side)
    os.replace(side, folder / MODEL_FILE)
    facts = forms.add_onnx("int8", encoder, folder, False)
    before, after = (forms.quality[name] for name in ("onnx", "int8"))
    loss = before - after
    if loss > MAX_INT8_LOSS and not force:
        raise KdscaleError(
            f"export: int8 lowers {MEASURE} on dev from {before:.4f} to {after:.4f} "
            f"({loss:.4f}; at most {MAX_INT8_LOSS} is let pass); nothing was written: leave out "
            "--int8, or take it with --force"
        )
    return {
        **facts,
        "loss": round(loss, 6),
        "limit": MAX_INT8_LOSS,
        "forced": loss > MAX_INT8_LOSS,
    }
