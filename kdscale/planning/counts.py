"""How much there is of everything: from the dataset in the store, else from what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdscale.config import Config
from kdscale.data.dataset import Tokens
from kdscale.data.queries import ALL, TRAIN
from kdscale.data.readers import Reader, Reject, open_reader
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, TOKENS, StepId
from kdscale.store import Artifact

SAMPLE = 4_000  # pairs whose lengths are looked at
CHARS_PER_TOKEN = 4.5  # of English text and a vocabulary of 30,000: assumed where not counted
QUERY_TOKENS = 9
# MS MARCO passages (arXiv 1611.09268): the files' own counts.
MSMARCO = {"passages": 8_841_823, "chars": 336, "train": 502_939, "dev": 6_980, "dl19": 43}
DOCSTRINGS = {"passages": 25_000, "chars": 180}  # about what the scientific packages have


@dataclass(frozen=True)
class Counts:
    """queries: by split; chars: of a passage, on the mean; lengths: [SAMPLE] tokens of pairs;
    blocks: token blocks of the language model; source: where the counts come from, in words."""

    passages: int
    chars: float
    queries: dict[str, int]
    pairs: int
    lengths: np.ndarray
    blocks: int
    source: str

    @property
    def text_chars(self) -> float:
        return self.passages * self.chars


def counts_of(
    config: Config, found: dict[StepId, Artifact], passages: int | None, queries: int | None
) -> Counts:
    """found: the dataset and the tokens, where the store has them; passages, queries (of
    the training split): what the user says. Raises KdscaleError where nobody knows."""
    dataset, tokens = found.get(DATASET), found.get(TOKENS)
    prepare = config.prepare
    if dataset is not None:
        facts = dataset.facts
        by_split = {split: c["kept"] for split, c in facts["queries"].items()}
        chars, blocks = min(prepare.max_chars, MSMARCO["chars"]), None
        lengths, source = None, f"the facts of {dataset.name}"
        if tokens is not None:
            chars = tokens.facts["text_tokens"] * CHARS_PER_TOKEN / max(1, facts["passages"])
            lengths, blocks = sampled_lengths(Tokens(tokens.path)), tokens.facts["blocks"]
            source += f" and {tokens.name}"
        if lengths is None:
            lengths = _assumed_lengths(config, chars)
        return Counts(
            facts["passages"], chars, by_split, facts["pairs"], lengths,
            _blocks(config, facts["passages"] * chars) if blocks is None else blocks, source,
        )  # fmt: skip
    known = _known(config)
    passages = known.get("passages") if passages is None else passages
    by_split = _by_split(config, known["queries"])
    if queries is not None:
        by_split[TRAIN] = min(queries, prepare.max_queries.get(TRAIN, queries))
    if not passages or TRAIN not in by_split:
        raise KdscaleError(
            "the store has no dataset of this config yet, and the config does not say how much "
            "there is; give --passages and --queries, or run kdscale prepare first"
        )
    chars = min(prepare.max_chars, known["chars"])
    a_query = prepare.negatives + prepare.easy_negatives + prepare.max_positives
    return Counts(
        passages, chars, by_split, by_split[TRAIN] * a_query, _assumed_lengths(config, chars),
        _blocks(config, passages * chars),
        f"the config and {known['told']}; the store has no dataset of it yet",
    )  # fmt: skip


def _by_split(config: Config, known: dict[str, int | None]) -> dict[str, int]:
    """known: of the source's own query sets; the config may divide one, and caps them."""
    prepare = config.prepare
    whole = known.get(ALL)
    if prepare.split and whole:
        known = {split: round(part * whole) for split, part in prepare.split.items()}
    caps = prepare.max_queries
    return {
        split: min(caps.get(split, n), n) if n else caps[split]
        for split, n in {**dict.fromkeys(caps), **known}.items()
        if n or split in caps
    }


def _known(config: Config) -> dict[str, Any]:
    """What is known of a source without preparing it: passages, chars of one, queries by split
    (None where they are not counted), and in words where that is from."""
    source = config.source
    if source.type == "msmarco":
        queries = {split: MSMARCO.get(split) for split in source.queries}
        return {**MSMARCO, "queries": queries, "told": "MS MARCO's published counts"}
    if source.type == "docstrings":
        return {**DOCSTRINGS, "queries": {}, "told": "an estimate of the packages' docstrings"}
    if source.type == "beir":
        return _counted(open_reader(source))
    return {"chars": MSMARCO["chars"], "queries": {}, "told": "--passages and --queries"}


def _counted(reader: Reader) -> dict[str, Any]:
    """By reading its files once."""
    sizes = [len(item[1]) for item in reader.passages() if not isinstance(item, Reject)]
    judged = {
        split: len({item[0] for item in reader.qrels(split) if not isinstance(item, Reject)})
        for split in reader.splits()
    }
    chars = float(np.mean(sizes)) if sizes else 0.0
    told = "what the source's files hold"
    return {"passages": len(sizes), "chars": chars, "queries": judged, "told": told}


def _assumed_lengths(config: Config, chars: float) -> np.ndarray:
    """Every pair of one length: a query and a passage of the mean size, cut at max_length."""
    length = min(config.prepare.max_length, 3 + QUERY_TOKENS + chars / CHARS_PER_TOKEN)
    return np.full(SAMPLE, max(1, round(length)))


def _blocks(config: Config, chars: float) -> int:
    tokens = chars / CHARS_PER_TOKEN
    budget = config.prepare.max_block_tokens
    return int((tokens if budget is None else min(tokens, budget)) // config.prepare.block_length)


def sampled_lengths(tokens: Tokens) -> np.ndarray:
    """[SAMPLE] tokens of pairs: queries and passages of one file, put together by chance."""
    import pyarrow.parquet as pq

    from kdscale.data.schema import PASSAGE_TOKENS, QUERY_TOKENS
    from kdscale.data.shards import read_table

    rng = np.random.default_rng(0)

    def drawn(path: Any, schema: Any) -> np.ndarray:
        column = read_table(path, schema)["ids"]
        sizes = np.concatenate([c.value_lengths().to_numpy() for c in column.chunks])
        return rng.choice(sizes, SAMPLE)

    parts = sorted((tokens.path / "passages").glob("part-*.parquet"))
    part = next((p for p in parts if pq.read_metadata(p).num_rows), parts[0])
    split = TRAIN if TRAIN in tokens.info["splits"] else tokens.info["splits"][0]
    queries = drawn(tokens.path / "queries" / f"{split}.parquet", QUERY_TOKENS)
    encoder = tokens.encoder()
    passages = drawn(part, PASSAGE_TOKENS)
    return np.array(
        [encoder.length(q, p) for q, p in zip(queries.tolist(), passages.tolist(), strict=True)]
    )
