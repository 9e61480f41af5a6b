"""The ranker: a cross-encoder with one logit, its files, and scoring with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.encode import Pair, PairEncoder
from kdscale.models.packed import PackedRanker, can_pack, first_token_only, pack
from kdscale.models.portable import add_older_names
from kdscale.models.pretrained import (
    check_max_length,
    check_model_dir,
    load_encoder,
    read_model,
    set_dropout,
)

# sentence-transformers would put a sigmoid on a single logit; scores here are raw logits.
RAW_LOGITS = {"activation_fn": "torch.nn.modules.linear.Identity"}

# Padded tokens a forward. On a CPU 2,048 were faster than 8,192 (benchmarks/scoring.py); a GPU
# wants more work at a time, of which this is a guess.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}


def build_ranker(encoder: PreTrainedModel, dropout: float, seed: int) -> PreTrainedModel:
    """A ranker on a copy of `encoder`'s weights, with a head drawn at random from `seed`.

    The head is the architecture's own sequence-classification head with one output. Where the
    encoder has no pooler and the head needs one, that is drawn too. In training mode.
    """
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    config.num_labels = 1
    config.architectures = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    body = model.base_model
    wanted = body.state_dict()
    weights = {k: v for k, v in encoder.state_dict().items() if k in wanted}
    missing = [k for k in wanted if k not in weights and not k.startswith("pooler.")]
    if missing:
        raise KdscaleError(
            f"a {config.model_type} ranker cannot be built on this encoder: it lacks {missing[0]}"
        )
    body.load_state_dict(weights, strict=False)
    set_dropout(model, dropout)
    return model.float().train()


def ranker_from_lm(path: str | Path, dropout: float, seed: int) -> PreTrainedModel:
    """A ranker on the encoder in a directory, with a fresh head."""
    return build_ranker(load_encoder(str(path)), dropout, seed)


def save_ranker(model: PreTrainedModel, encoder: PairEncoder, path: str | Path) -> None:
    """Write a Hugging Face directory that `AutoModelForSequenceClassification` and
    sentence-transformers' `CrossEncoder` read, both with the scores of `Scorer`, in the older
    versions too."""
    model.config.sentence_transformers = dict(RAW_LOGITS)
    add_older_names(model.config, encoder.pad_id)
    model.save_pretrained(path)
    encoder.save(path)


def load_ranker(path: str | Path) -> PreTrainedModel:
    """The ranker in a directory, fp32, in evaluation mode.

    Raises KdscaleError for a directory without weights, and for a model that is no ranker.
    """
    check_model_dir(path)
    model, missing = read_model(AutoModelForSequenceClassification, str(path))
    if missing or model.config.num_labels != 1:
        raise KdscaleError(
            f"{path} is no ranker with one logit (missing: {', '.join(missing[:3]) or 'none'}; "
            f"outputs: {model.config.num_labels}); fine-tune or distil one from it first"
        )
    return model.eval()


class PairScorer(Protocol):
    """What ranks: `Scorer` with torch, `OnnxScorer` (`kdscale.models.onnx_ranker`) without."""

    encoder: PairEncoder

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """[len(pairs)] float32 raw logits, in the order given."""
        ...


class Scorer:
    """Scores pairs with a ranker, in batches of like length.

    batch_tokens: at most so many padded tokens a forward (a longer pair goes alone); None: those
    of BATCH_TOKENS.
    precision "bf16" runs the matrix products in bfloat16 (autocast); scores are float32 always.
    On CUDA it runs BERT rankers without any padding (`kdscale.models.packed`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PairEncoder,
        batch_tokens: int | None = None,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ):
        check_max_length(model.config, encoder.max_length)
        check_vocabulary(model.config, encoder)
        # The heads of decoders read the last token that is not this one, whatever the mask says.
        model.config.get_text_config().pad_token_id = encoder.pad_id
        self.device = torch.device(device)
        movable: Any = model  # whose `to` transformers' types misread
        self.model: PreTrainedModel = movable.to(self.device).eval()
        self.encoder = encoder
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]
        self.precision = precision
        packs = can_pack(model, self.device, precision)
        self.packed = PackedRanker(model) if packs else None

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """[len(pairs)] float32 raw logits, in the order given."""
        with (
            first_token_only(self.model),
            torch.autocast(
                self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
            ),
        ):
            return score_in_batches(pairs, self.encoder, self.batch_tokens, self._forward)

    def _forward(self, pairs: list[Pair]) -> torch.Tensor:
        # Nothing here waits for the device: the next batch is put together while it works at this
        # one, and its logits stay there.
        if self.packed is not None:
            return self.packed(pack(pairs, self.encoder).to(self.device)).float()
        inputs = {
            name: tensor.to(self.device, non_blocking=True)
            for name, tensor in self.encoder.collate(pairs).items()
        }
        return self.model(**inputs).logits[:, 0].float()


def check_vocabulary(config: PreTrainedConfig, encoder: PairEncoder) -> None:
    """Raise KdscaleError for a tokenizer with more tokens than the model."""
    if encoder.vocab_size > config.vocab_size:
        raise KdscaleError(
            f"the tokenizer has {encoder.vocab_size} tokens, the model only "
            f"{config.vocab_size}; give the model its own tokenizer files"
        )


def score_in_batches(
    pairs: Sequence[Pair],
    encoder: PairEncoder,
    batch_tokens: int,
    forward: Callable[[list[Pair]], torch.Tensor],
) -> np.ndarray:
    """[len(pairs)] float32, in the order given. forward: a batch of pairs to its [B] logits."""
    lengths = np.array([encoder.length(len(q), len(p)) for q, p in pairs], dtype=np.int64)
    batches = plan_batches(lengths, batch_tokens)
    logits = [forward([pairs[i] for i in batch]) for batch in batches]
    scores = np.empty(len(pairs), dtype=np.float32)
    if batches:
        scores[np.concatenate(batches)] = torch.cat(logits).cpu().numpy()
    return scores


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Index arrays that cover every item once, longest first, each within the padded budget."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        # Sorted downwards, so the first item gives the width of its batch.
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
