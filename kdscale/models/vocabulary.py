"""A smaller vocabulary: the tokens that a corpus uses, and enough to write any other word with.

In a small student the embedding table is most of the bytes (of MiniLM's 30,522 tokens at width 192
they are 87 %), and a corpus of one field uses a fraction of the tokens. A token that is left out
costs no text: WordPiece takes the longest piece that there is, down to single characters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.encode import PairEncoder

FAMILIES = ("bert", "electra")


def check_trimmable(model: PreTrainedModel, encoder: PairEncoder) -> None:
    """Raise KdscaleError unless this is a BERT or ELECTRA model with a WordPiece tokenizer."""
    kind = json.loads(encoder.tokenizer.backend_tokenizer.to_str())["model"]["type"]
    if model.config.model_type not in FAMILIES or kind != "WordPiece":
        raise KdscaleError(
            f"trim the vocabulary: only of a BERT or ELECTRA model with a WordPiece tokenizer, not "
            f"of a {model.config.model_type} with {kind}; leave the trimming out"
        )


def kept_tokens(
    encoder: PairEncoder, texts: Iterable[Sequence[str]], min_count: int = 1
) -> np.ndarray:
    """[K] ids, ascending, of the tokens that stay: those that occur at least `min_count` times in
    the texts (given in batches), the special ones, and all pieces of one character.

    A text of kept tokens alone is cut as before: the longest piece of the whole vocabulary is
    there, and no longer one can be. A word that the whole vocabulary cannot write is unknown
    because the pieces that were taken for its beginning leave a rest with none; those of the
    texts' unknown words stay as well, lest other pieces be taken and the word be known.
    """
    state = _state(encoder)
    vocab: dict[str, int] = state["model"]["vocab"]
    prefix: str = state["model"]["continuing_subword_prefix"]
    counts = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    unknown = vocab[state["model"]["unk_token"]]
    kept = {token["id"] for token in state["added_tokens"]} | {unknown}
    kept |= {i for piece, i in vocab.items() if len(piece.removeprefix(prefix)) == 1}
    seen: set[str] = set()
    for batch in texts:
        for text, ids in zip(batch, encoder.tokenise(batch), strict=True):
            np.add.at(counts, ids, 1)
            if unknown in ids:
                for word in set(_words(encoder, text)) - seen:
                    seen.add(word)
                    kept.update(_taken_of_unknown(word, vocab, prefix))
    kept.update(np.flatnonzero(counts >= max(1, min_count)).tolist())
    return np.array(sorted(kept), dtype=np.int64)


def trim_vocabulary(model: PreTrainedModel, encoder: PairEncoder, kept: np.ndarray) -> PairEncoder:
    """Cut the model's embedding table, in place, to the rows of `kept` ([K] ids, ascending), and
    return an encoder that numbers these tokens from 0.

    Scores of texts of kept tokens are those of before, to the last bit.
    """
    check_trimmable(model, encoder)
    trimmed = _trimmed_encoder(encoder, kept)
    table: Any = model.get_input_embeddings()
    new = nn.Embedding(len(kept), table.embedding_dim, padding_idx=trimmed.pad_id)
    with torch.no_grad():
        new.weight.copy_(table.weight[torch.from_numpy(kept)])
    model.set_input_embeddings(new)
    model.config.vocab_size = len(kept)
    model.config.pad_token_id = trimmed.pad_id
    return trimmed


def _trimmed_encoder(encoder: PairEncoder, kept: np.ndarray) -> PairEncoder:
    place = {int(old): new for new, old in enumerate(kept)}
    with tempfile.TemporaryDirectory(prefix="kdscale-vocabulary-") as directory:
        encoder.save(directory)
        path = Path(directory, "tokenizer.json")
        path.write_text(json.dumps(_renumbered(_state(encoder), place)), encoding="utf-8")
        path = Path(directory, "tokenizer_config.json")
        settings = json.loads(path.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(place[int(old)]): token
                for old, token in settings["added_tokens_decoder"].items()
            }
        path.write_text(json.dumps(settings), encoding="utf-8")
        trimmed = PairEncoder.load(directory, encoder.max_length)
    trimmed.tokenizer.name_or_path = encoder.tokenizer.name_or_path
    return trimmed


def _renumbered(state: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """A tokenizer's JSON with new ids: `place` maps old ones to new ones."""
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = {t: place[i] for t, i in vocab.items() if i in place}
    for token in state["added_tokens"]:
        token["id"] = place[token["id"]]
    for processor in _processors(state["post_processor"]):
        if processor["type"] == "TemplateProcessing":
            for token in processor["special_tokens"].values():
                token["ids"] = [place[i] for i in token["ids"]]
        elif processor["type"] == "BertProcessing":
            for name in ("sep", "cls"):
                processor[name][1] = place[processor[name][1]]
        else:
            raise KdscaleError(
                f"trim the vocabulary: the tokenizer puts pairs together with "
                f"{processor['type']}, which is not BERT's; leave the trimming out"
            )
    return state


def _processors(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if processor is not None and processor["type"] == "Sequence":
        yield from processor["processors"]
    elif processor is not None:
        yield processor


def _state(encoder: PairEncoder) -> dict[str, Any]:
    """What tokenizer.json says, without the padding and truncation of the last call."""
    state = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    return {**state, "padding": None, "truncation": None}


def _words(encoder: PairEncoder, text: str) -> list[str]:
    backend = encoder.tokenizer.backend_tokenizer
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def _taken_of_unknown(word: str, vocab: dict[str, int], prefix: str) -> list[int]:
    """The pieces that WordPiece takes of a word before it finds none for the rest; none of a word
    that it can write."""
    taken: list[int] = []
    start = 0
    while start < len(word):
        head = prefix if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if head + word[start:e] in vocab), None)
        if end is None:
            return taken
        taken.append(vocab[head + word[start:end]])
        start = end
    return []
