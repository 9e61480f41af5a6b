"""Whether a config's teacher fits it, as far as the model's files tell without its weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from transformers.utils import cached_file

from kdscale.config import ModelRef, TokenOptions
from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import (
    WEIGHTS,
    check_max_length,
    load_tokenizer,
    max_positions,
    read_config,
    resolve_model,
)

MIN_BLOCK = 8  # tokens
# What a model for classification has behind its encoder, by family.
HEADS = {"classifier", "pre_classifier", "classification_head", "score", "logits_proj"}


def teacher_encoder(model: ModelRef, prepare: TokenOptions) -> PairEncoder:
    """The teacher's tokenizer, once its model is known to read inputs as long as those asked.

    Raises KdscaleError where the tokenizer or the lengths asked for do not suit the teacher.
    """
    path = resolve_model(model.name, model.revision)
    config = read_config(path, model.revision)
    check_max_length(config, prepare.max_length)
    limit = max_positions(config)
    if prepare.block_length < MIN_BLOCK or (limit is not None and prepare.block_length > limit):
        raise KdscaleError(
            f"prepare.block_length is {prepare.block_length}; a block has at least {MIN_BLOCK} "
            f"tokens, and the model {model.name!r} reads at most {limit or 'any number'}: set "
            "it between them"
        )
    encoder = PairEncoder(load_tokenizer(model.name, model.revision), prepare.max_length)
    if encoder.cls_id is None or encoder.sep_id is None:
        raise KdscaleError(
            f"the tokenizer of {model.name!r} has no CLS or SEP token, which blocks of text "
            "begin and end with; use a BERT-like teacher.model"
        )
    return encoder


def is_at_hand(model: ModelRef) -> bool:
    """Whether the teacher's settings are in a folder or in the hub's cache."""
    path = resolve_model(model.name, model.revision)
    try:
        found = cached_file(path, "config.json", revision=model.revision, local_files_only=True)
    except Exception:  # of several kinds: not cached, no such revision, ...
        return False
    return found is not None


def trained_head(model: ModelRef) -> str | None:
    """The class of a model that is a ranker already, with a head in its files; else None. Of a
    hub's model the settings alone tell."""
    path = resolve_model(model.name, model.revision)
    names = read_config(path, model.revision).architectures or []
    name = next((n for n in names if n.endswith("ForSequenceClassification")), None)
    if name is None or not Path(path).is_dir():
        return name
    return name if any(key.split(".")[0] in HEADS for key in _weights(Path(path))) else None


def _weights(directory: Path) -> list[str]:
    """The names of the weights in a folder, without reading them."""
    whole, index = (directory / name for name in WEIGHTS)
    if not whole.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(whole, "pt") as file:
        return list(file.keys())
