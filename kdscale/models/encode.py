"""From texts to the model's input: tokenise once, put pairs together when a batch is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kdscale.errors import KdscaleError
from kdscale.models.portable import save_tokenizer

Pair = tuple[np.ndarray, np.ndarray]  # token ids of the query and of the passage

# How a pair is cut depends on which of its texts is the longer, so texts are kept longer than a
# pair can be. 1,024 tokens is twice what BERT can read: only of two texts that are both longer
# the comparison is lost (it decides to which of them the odd token of a pair goes).
KEPT_TOKENS = 1024
# Of a text only so many characters for each token that is kept are read at first, up to a space:
# more than most texts have. Where that gives too few tokens, the whole text is read.
CHARS_A_TOKEN = 8


class PairEncoder:
    """The layout of a query-passage pair for one tokenizer.

    The layout (which special tokens stand before, between and after the texts, and the token
    types) is learnt from the tokenizer by encoding one pair, so BERT, RoBERTa and the like need
    no code of their own.

    Attributes: tokenizer, max_length, budget (tokens of a pair that are text), pad_id, cls_id,
    sep_id, mask_id (None where the tokenizer has no such token), vocab_size, uses_types.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise KdscaleError(f"tokenizer {name}: has no tokenizer.json; convert it to a fast one")
        if tokenizer.pad_token_id is None or tokenizer.truncation_side != "right":
            raise KdscaleError(
                f"tokenizer {name}: needs a padding token (pad_token) and truncation_side 'right'; "
                "set them in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id: int = tokenizer.pad_token_id
        self.cls_id: int | None = tokenizer.cls_token_id
        self.sep_id: int | None = tokenizer.sep_token_id
        self.mask_id: int | None = tokenizer.mask_token_id
        self.vocab_size: int = len(tokenizer)

        backend = tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        with self._reading():
            probe = backend.encode("a", "a")
        ids, owners = np.array(probe.ids, dtype=np.int32), probe.sequence_ids
        if not {0, 1} <= set(owners):
            raise KdscaleError(
                f"tokenizer {name}: has no token for a text; use that of a BERT-like model"
            )
        self.uses_types: bool = "token_type_ids" in tokenizer.model_input_names
        types = np.array(probe.type_ids, dtype=np.int32)
        q_start, q_end = _span(owners, 0)
        p_start, p_end = _span(owners, 1)
        cuts = [(0, q_start), (q_end, p_start), (p_end, len(ids))]
        self._special_ids = [ids[a:b] for a, b in cuts]
        self._special_types = [types[a:b] for a, b in cuts]
        self._q_type, self._p_type = types[q_start], types[p_start]
        self.budget = max_length - sum(len(part) for part in self._special_ids)
        if self.budget < 2:
            raise KdscaleError(
                f"a max_length of {max_length} leaves no room for a query and a passage; "
                f"set at least {max_length - self.budget + 2}"
            )

    @classmethod
    def load(cls, path: str | Path, max_length: int | None = None) -> PairEncoder:
        """Read the tokenizer files of a directory; max_length is the one saved with them."""
        from kdscale.models.pretrained import load_tokenizer

        tokenizer = load_tokenizer(str(path))
        return cls(tokenizer, max_length or length_of(tokenizer, path))

    def save(self, path: str | Path) -> None:
        """Write the tokenizer files, max_length among them as `model_max_length`."""
        # The last call's padding and truncation would otherwise end up in tokenizer.json.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.model_max_length = self.max_length
        save_tokenizer(self.tokenizer, path)

    def tokenise(self, texts: Sequence[str], keep: int | None = None) -> list[np.ndarray]:
        """Token ids (int32) of each text without special tokens, at most `keep` of them (None:
        KEPT_TOKENS)."""
        keep = max(KEPT_TOKENS, self.max_length) if keep is None else keep
        heads = [_head(text, CHARS_A_TOKEN * keep) for text in texts]
        found = self._ids(heads)
        short = [
            i for i, ids in enumerate(found) if len(ids) <= keep and len(heads[i]) < len(texts[i])
        ]
        for i, ids in zip(short, self._ids([texts[i] for i in short]), strict=True):
            found[i] = ids
        return [np.array(ids[:keep], dtype=np.int32) for ids in found]

    def enough(self, longest_query: int) -> int:
        """How many tokens of a passage tell what becomes of it in a pair with any query of at most
        so many tokens."""
        return max(self.budget, longest_query) + 1

    def tokenise_request(self, query: str, passages: Sequence[str]) -> list[Pair]:
        """The pairs of a query and its passages."""
        (query_ids,) = self.tokenise([query])
        kept = self.tokenise(passages, self.enough(len(query_ids)))
        return [(query_ids, ids) for ids in kept]

    def length(self, q_len: int, p_len: int) -> int:
        """Tokens of a pair of texts of so many tokens, special tokens included, after cutting."""
        return self.max_length - self.budget + min(q_len + p_len, self.budget)

    def collate(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """A padded batch: input_ids, attention_mask and, where the model has them,
        token_type_ids, each [B, L] int64.

        Equal to `tokenizer(queries, passages, truncation=True, max_length=max_length,
        padding=True)`.
        """
        # All tokens in one row, pair by pair, which the mask then deals out to the rows.
        ids, types, lengths = self.flatten(pairs)
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        input_ids[mask] = ids
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.uses_types:
            type_ids = np.full(mask.shape, self.tokenizer.pad_token_type_id, dtype=np.int64)
            type_ids[mask] = types
            batch["token_type_ids"] = torch.from_numpy(type_ids)
        return batch

    def flatten(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same pairs end to end: token ids [T], token types [T], and lengths [B]."""
        q_lens, p_lens = np.array([(len(q), len(p)) for q, p in pairs], dtype=np.int64).T
        q_keep, p_keep = self.kept(q_lens, p_lens)
        before, between, after = self._special_ids
        flat: list[np.ndarray] = []
        kept = zip(pairs, q_keep.tolist(), p_keep.tolist(), strict=True)
        for (q_ids, p_ids), q_len, p_len in kept:
            flat += (before, q_ids[:q_len], between, p_ids[:p_len], after)
        lengths = self.max_length - self.budget + q_keep + p_keep
        return np.concatenate(flat), self._flat_types(q_keep, p_keep), lengths

    def _flat_types(self, q_keep: np.ndarray, p_keep: np.ndarray) -> np.ndarray:
        """The token types of pairs of so many tokens, one pair after the other."""
        before, between, after = self._special_types
        one = np.concatenate([before, [self._q_type], between, [self._p_type], after])
        counts = np.ones((len(q_keep), len(one)), dtype=np.int64)
        counts[:, len(before)] = q_keep
        counts[:, len(before) + 1 + len(between)] = p_keep
        return np.repeat(np.tile(one, len(q_keep)), counts.ravel())

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """All tokens of each text; their places in it, which cost time, are not asked for."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        with self._reading():
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in encoded]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # it is the one kind that the tokenizers library raises
            raise KdscaleError(
                f"tokenizer {self.tokenizer.name_or_path}: cannot read a text ({error}); use that "
                "of a BERT-like model"
            ) from None

    def kept(self, q_lens: np.ndarray, p_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of each text stay: `longest_first` as the tokenizers library does it.

        The shorter text stays whole while it leaves the longer one at least its own length;
        else each gets half, and the longer one (of equals the passage) the odd token.
        q_lens, p_lens: [B]
        """
        short = np.minimum(np.minimum(q_lens, p_lens), self.budget // 2)
        long = self.budget - short
        cut, q_longer = q_lens + p_lens > self.budget, q_lens > p_lens
        return (
            np.where(cut, np.where(q_longer, long, short), q_lens),
            np.where(cut, np.where(q_longer, short, long), p_lens),
        )


def length_of(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> int:
    """The longest input that a tokenizer's files in `path` allow. Raises KdscaleError for files
    that do not say."""
    if tokenizer.model_max_length > 1_000_000:  # what transformers says where there is no limit
        raise KdscaleError(
            f"{path}/tokenizer_config.json: has no model_max_length; "
            "set it to the tokens of a query-passage pair"
        )
    return tokenizer.model_max_length


def _head(text: str, chars: int) -> str:
    """At most so many characters of it, up to a space; the whole text where it has none there."""
    if len(text) <= chars:
        return text
    end = text.rfind(" ", 0, chars)
    return text[:end] if end > 0 else text


def _span(owners: list[int | None], text: int) -> tuple[int, int]:
    """Start and end of one text in an encoded pair."""
    start = owners.index(text)
    return start, start + owners.count(text)
