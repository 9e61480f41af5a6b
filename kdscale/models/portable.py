"""What other programs and older versions look for in a model's folder, and transformers 5 no
longer writes.

`scripts/compatibility` loads such folders with them and compares the scores; docs/export.md has
its table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# A class that transformers 4 does not know, and the name of the same that both know. It reads
# tokenizer.json as it is.
GENERIC, GENERIC_NAME = "TokenizersBackend", "PreTrainedTokenizerFast"
TOKEN_OPTIONS = ("content", "lstrip", "normalized", "rstrip", "single_word")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write the tokenizer files, so that transformers 4 and 5 read the same from them, and
    special_tokens_map.json, which FlashRank cannot do without."""
    tokenizer.save_pretrained(path)
    _mend_settings(Path(path, "tokenizer_config.json"), tokenizer)
    named = {name: _token(tokenizer, text) for name, text in tokenizer.special_tokens_map.items()}
    _write(Path(path, "special_tokens_map.json"), named)


def add_older_names(config: PreTrainedConfig, pad_id: int) -> None:
    """Give a configuration, in place, what transformers 4 and FlashRank read in config.json.

    A ModernBERT whose layers with full attention do not come at even distances, the first among
    them, cannot be told to transformers 4.
    """
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_id
    if config.model_type == "modernbert":
        rope = config.rope_parameters
        config.global_rope_theta = rope["full_attention"]["rope_theta"]
        config.local_rope_theta = rope["sliding_attention"]["rope_theta"]
        config.global_attn_every_n_layers = _distance(config.layer_types)


def _mend_settings(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings["tokenizer_class"] == GENERIC:
        settings["tokenizer_class"] = GENERIC_NAME
        # The class itself knows nothing of token types.
        settings["model_input_names"] = list(tokenizer.model_input_names)
    if isinstance(settings.get("extra_special_tokens"), list):
        # transformers 4 wants names for these, and has the list under this one.
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write(path, settings)


def _token(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Any] | str:
    """A special token with its options, without which readers would take others."""
    token = tokenizer.added_tokens_decoder.get(tokenizer.convert_tokens_to_ids(text))
    return text if token is None else {name: getattr(token, name) for name in TOKEN_OPTIONS}


def _distance(kinds: list[str]) -> int:
    """Every how many layers one has full attention, as far as that can be said."""
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    return full[1] if len(full) > 1 else len(kinds)


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
