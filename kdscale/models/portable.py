"""What other programs look for in a model's folder, and what transformers 5 leaves out of it.

transformers 5 builds many tokenizers (BERT's among them) anew from the vocabulary alone: another
normaliser or pre-tokenizer in tokenizer.json is dropped without a word. And a tokenizer whose class
is PreTrainedTokenizerFast gives no token types, even where tokenizer.json sets them. Here
tokenizer.json is the truth.

`scripts/compatibility` loads such folders with other programs and compares the scores;
docs/guides/export.md has its table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

TOKENIZER_FILE = "tokenizer.json"
TYPES = "token_type_ids"
# Cases, accents, scripts, marks, numbers, blanks and words that no vocabulary has: what normalisers
# and pre-tokenizers treat differently.
SAMPLE = (
    "The Quick Brown Fox's e-mail: user.name@example.org (50%)!",
    "Café naïve ÅNGSTRÖM ﬁne Straße İstanbul e\u0301",
    "snake_case CamelCase don't can't 3.14 1,000 x2 O(n)",
    "河の岸 東京タワー 한국어 русский Ελληνικά ไทย हिन्दी",
    "tab\tnew\nline  two   blanks\u00a0hard\u200bzero [MASK] <s> </s> ##ing ▁x",
    "unbelievability antidisestablishmentarianism zzxqj 😀",
)
SAMPLED_WORDS = 5_000  # of the vocabulary, at most
# What of BERT's normaliser a tokenizer's settings can name, and what tokenizer.json calls it.
SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def as_its_file_says(
    tokenizer: PreTrainedTokenizerBase, path: str, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer, or where it reads texts otherwise than the tokenizer.json beside it one that
    reads them so.

    Raises ValueError where the settings in tokenizer_config.json contradict tokenizer.json.
    """
    if not tokenizer.is_fast or type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    file = cached_file(
        path,
        TOKENIZER_FILE,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return tokenizer
    raw = Tokenizer.from_file(file)
    if _same(tokenizer.backend_tokenizer, raw):
        return tokenizer
    _check_settings(Path(file))
    known = raw.get_vocab()
    raw.add_tokens(
        [t for _, t in sorted(tokenizer.added_tokens_decoder.items()) if t.content not in known]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        name_or_path=tokenizer.name_or_path,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        pad_token_type_id=tokenizer.pad_token_type_id,
        **tokenizer.special_tokens_map,
    )


def set_types(tokenizer: PreTrainedTokenizerBase, model_types: int) -> None:
    """Let a tokenizer give token types where the model has so many (`type_vocab_size`) and
    tokenizer.json sets more than one, and give none where they are more than the model's."""
    highest = max(tokenizer.backend_tokenizer.encode("a", "a").type_ids, default=0)
    names = [name for name in tokenizer.model_input_names if name != TYPES]
    gives = len(names) < len(tokenizer.model_input_names)
    if model_types > highest and (gives or highest > 0):
        names.insert(1, TYPES)
    # What is handed on to who loads the tokenizer that is saved.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both make the same of any text, as far as a sample and their vocabularies tell."""
    vocabulary = one.get_vocab()
    if vocabulary != other.get_vocab():
        return False
    words = sorted(vocabulary)
    words = words[:: 1 + len(words) // SAMPLED_WORDS]
    parts = [words[i : i + 50] for i in range(0, len(words), 50)]
    # As they are, and so that a normaliser or a pre-tokenizer has something to do.
    sample = [*SAMPLE, *map(" ".join, parts), *("-".join(part).upper() for part in parts)]
    sample += [", ".join(word[:1] + "\u0301" + word[1:] for word in part) for part in parts]
    for tokenizer in (one, other):
        tokenizer.no_padding()
        tokenizer.no_truncation()
    pairs = list(zip(sample, sample[::-1], strict=True))
    return all(
        (a.ids, a.type_ids) == (b.ids, b.type_ids)
        for a, b in zip(one.encode_batch(pairs), other.encode_batch(pairs), strict=True)
    )


def _check_settings(file: Path) -> None:
    """Raise ValueError where tokenizer_config.json says otherwise of a normaliser than the
    tokenizer.json beside it: transformers goes by the first, other tools by the second."""
    settings_file = file.with_name("tokenizer_config.json")
    if not settings_file.is_file():
        return
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    normalizer = json.loads(file.read_text(encoding="utf-8")).get("normalizer") or {}
    for setting, name in SETTINGS.items():
        said, does = settings.get(setting), normalizer.get(name)
        if None not in (said, does) and said != does:
            raise ValueError(
                f"tokenizer_config.json says {setting} {said}, tokenizer.json {name} {does}, and "
                "which of them the model was trained with is not known; make both the same"
            )


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
    number: Any = tokenizer.convert_tokens_to_ids(text)  # of one token one number
    token = tokenizer.added_tokens_decoder.get(number)
    return text if token is None else {name: getattr(token, name) for name in TOKEN_OPTIONS}


def _distance(kinds: list[str]) -> int:
    """Every how many layers one has full attention, as far as that can be said."""
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    return full[1] if len(full) > 1 else len(kinds)


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
