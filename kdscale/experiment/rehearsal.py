"""What of a config's models would fail later, told before the first training.

One set of checks for `kdscale doctor`, `--dry-run` and `run`. Whether a student can be made of a
teacher, trained beside it and put into a ranker depends on the architecture, the shape, lm.init
and the losses in too many ways to be listed. So it is done: by the code that will do it, on a model
of the teacher's kind and width with random weights, few layers and few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdscale.config import Config, Shape, Strategy, Teacher
from kdscale.errors import KdscaleError
from kdscale.experiment.context import StepId

if TYPE_CHECKING:
    from kdscale.models.encode import PairEncoder

ROWS = 16  # texts of the rehearsal, each as many tokens long


def check_models(
    config: Config,
    needed: Collection[StepId],
    download: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Raise KdscaleError for what would fail while the steps named in `needed` run; returns
    warnings, a line each.

    download: whether a hub model's settings and tokenizer may be fetched; if not, one that is not
    in the hub's cache is passed over. say: is told of what is fetched, which can take a while.
    """
    from kdscale.models.fit import is_at_hand, trained_head

    warnings = []
    for number, teacher in enumerate(config.teachers, 1):
        if not is_at_hand(teacher.ref):
            if not download:
                say(f"  {teacher.model} is not here; the hub is asked for it when it is needed")
                continue
            say(f"  asking the hub for {teacher.model}")
        _rehearse(config, teacher, number, needed)
        head = trained_head(teacher.ref)
        if head is not None:
            where = "teacher" if number == 1 else f"ensemble[{number - 2}]"
            warnings.append(
                f"{where}.model {teacher.model} is a finished ranker ({head}): its encoder alone "
                "is taken, its head is left out, and a new one is trained; if that is not what you "
                "want, give an encoder without a head"
            )
    return warnings


def _rehearse(config: Config, teacher: Teacher, number: int, needed: Collection[StepId]) -> None:
    from kdscale.models.fit import teacher_encoder
    from kdscale.models.pretrained import read_config, resolve_model
    from kdscale.models.ranker import check_vocabulary
    from kdscale.models.shapes import check_teacher
    from kdscale.models.students import map_layers

    full = read_config(resolve_model(teacher.model, teacher.revision), teacher.revision)
    for shape in config.students if number == 1 else ():
        check_teacher(shape, full.model_type)
    encoder = teacher_encoder(teacher.ref, config.prepare.of_tokens)
    check_vocabulary(full, encoder)
    with _told(teacher, full, "a ranker"):
        _Rehearsal(config, full, encoder, [1]).teacher()
    for shape in config.students if number == 1 else ():
        strategies = [s for s in config.ranker.chosen if StepId("student", s, shape.name) in needed]
        from_lm = StepId("lm", shape=shape.name) in needed
        if not strategies and not from_lm:
            continue
        with _told(teacher, full, f"student {shape.name}"):
            numbers = map_layers(config.lm.layer_map, shape.layers, full.num_hidden_layers)
            rehearsal = _Rehearsal(config, full, encoder, numbers)
            if from_lm:
                rehearsal.language_model(shape)
            rehearsal.students(shape, strategies)


class _Rehearsal:
    """The steps of a run on a small model of the teacher's kind.

    numbers: the teacher layer of each student layer; of these the first and the last are kept, and
    the teacher's first layer, which may be unlike the others.
    """

    def __init__(self, config: Config, full: Any, encoder: PairEncoder, numbers: Sequence[int]):
        import torch
        from transformers import AutoModel

        from kdscale.models.shrunk import build_quietly, shrunk_config

        kept = sorted({1, numbers[0], numbers[-1]})
        self._map = [kept.index(n) + 1 for n in ([numbers[0], numbers[-1]][-len(numbers) :])]
        self._config, self._encoder = config, encoder
        self._body = build_quietly(AutoModel, shrunk_config(full, kept))
        draw = torch.Generator().manual_seed(0)
        size = (ROWS, min(ROWS, encoder.max_length))
        self._ids = torch.randint(1, self._body.config.vocab_size, size, generator=draw)

    def teacher(self) -> None:
        from kdscale.models.ranker import build_ranker

        self._ranker = build_ranker(self._body, 0.0, 0)
        self._score(self._ranker)

    def language_model(self, shape: Shape) -> None:
        from transformers import AutoModelForMaskedLM

        from kdscale.losses import MASKED_LOSSES
        from kdscale.losses.lm import MLM_KL
        from kdscale.models.mlm import MaskedLmHead, head_of
        from kdscale.models.shrunk import build_quietly
        from kdscale.models.students import build_student

        lm = self._config.lm
        student = build_student(self._small(shape), self._body, lm.init, 0, self._ids, self._map)
        self._compare(student, self._body, lm.losses)
        if set(lm.losses) & set(MASKED_LOSSES):
            if self._encoder.mask_id is None:
                raise KdscaleError(
                    "lm.losses: the tokenizer has no mask token, which mlm and mlm_kl need; leave "
                    "them out, or use another teacher.model"
                )
            MaskedLmHead(student, 0)(student(self._ids)[0])
        if MLM_KL in lm.losses:
            head_of(build_quietly(AutoModelForMaskedLM, self._body.config))
        self._lm = student

    def students(self, shape: Shape, strategies: Sequence[Strategy]) -> None:
        from kdscale.models.ranker import build_ranker
        from kdscale.models.students import build_student

        intermediate = self._config.ranker.intermediate_losses
        for from_lm in (True, False):
            alike = [s for s in strategies if s.from_lm == from_lm]
            if not alike:
                continue
            encoder = (
                self._lm if from_lm else build_student(self._small(shape), self._body, "random", 0)
            )
            ranker = build_ranker(encoder, 0.0, 0)
            self._score(ranker)
            if intermediate and any(s.soft for s in alike):
                self._compare(ranker, build_ranker(self._body, 0.0, 0).base_model, intermediate)

    def _small(self, shape: Shape) -> Shape:
        import dataclasses

        return dataclasses.replace(shape, layers=len(self._map))

    def _score(self, ranker: Any) -> None:
        import torch

        pairs = [(row[:2].numpy(), row[2:].numpy()) for row in self._ids[:2]]
        batch = self._encoder.collate(pairs)
        batch["input_ids"] %= self._body.config.vocab_size  # the marks have ids of their own
        with torch.no_grad():
            logits = ranker.eval()(**batch).logits
        if logits.shape != (2, 1):
            raise KdscaleError(f"it gives {list(logits.shape)} numbers for 2 pairs, not one each")

    def _compare(self, student: Any, teacher: Any, losses: Collection[str]) -> None:
        import torch

        from kdscale.training.intermediate import IntermediateLosses

        heads = self._config.lm.relation_heads
        intermediate = IntermediateLosses(
            student.config.hidden_size, teacher, self._map, losses, heads, 0
        )
        inputs = {"input_ids": self._ids, "attention_mask": torch.ones_like(self._ids)}
        with torch.no_grad():
            intermediate(student.eval(), inputs)


@contextmanager
def _told(teacher: Teacher, full: Any, what: str) -> Iterator[None]:
    try:
        yield
    except KdscaleError as error:
        raise KdscaleError(f"teacher.model {teacher.model} ({full.model_type}): {error}") from None
    except Exception as error:  # of any kind: what an architecture cannot do shows in many ways
        first_line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise KdscaleError(
            f"teacher.model {teacher.model}: of a {full.model_type} {what} cannot be made "
            f"({type(error).__name__}: {first_line}); use a BERT, RoBERTa, ELECTRA, DistilBERT or "
            "ModernBERT model, or other settings of lm and ranker"
        ) from error
