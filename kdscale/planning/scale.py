"""Where each stage stops scaling: the same config over larger collections, in figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdscale.config import Config
from kdscale.data.queries import TRAIN
from kdscale.planning.counts import CHARS_PER_TOKEN, Counts
from kdscale.planning.model import CostModel, Machines, Stage
from kdscale.stages.score_blocks import MAX_BLOCKS

# Bytes: of a passage's id (17 characters; a million of them were looked at) and of a BM25 posting
# (a row, a count) on the driver's disk; in a worker's memory of a pair's ids, of a passage's key
# in a token table, and of a token there.
PASSAGE_ID, POSTING, PAIR_OBJECT, KEY_OBJECT, TOKEN = 55.0, 8.0, 220.0, 130.0, 4.0
HOST_MEMORY, HOST_DISK = 512e9, 4e12  # of a large node: assumed
S3_PUT = 0.005 / 1_000  # dollars a request (S3 standard, us-east-1)
NETWORK = 1.25e9  # bytes/s of a node: 10 Gbit, assumed


@dataclass(frozen=True)
class Scale:
    name: str
    passages: int
    pairs: int
    text: str


SCALES = (
    Scale("MS MARCO", 8_841_823, 40_000_000, "8.8 M passages, 40 M scored pairs"),
    Scale("ClueWeb22-B", 1_000_000_000, 1_000_000_000, "a billion pages, a billion pairs"),
    Scale("beyond", 10_000_000_000, 10_000_000_000, "ten billion pages and pairs"),
)


def scaled(counts: Counts, scale: Scale, a_query: int) -> Counts:
    """The same texts and lengths, more of them. a_query: pairs a training query."""
    queries = {**counts.queries, TRAIN: max(1, scale.pairs // a_query)}
    grown = scale.passages / max(1, counts.passages)
    return replace(
        counts,
        passages=scale.passages,
        pairs=scale.pairs,
        queries=queries,
        blocks=round(counts.blocks * grown),
        source=f"assumed: {scale.text}",
    )


def scale_lines(config: Config, counts: Counts, machines: Machines) -> Iterator[str]:
    """The table and the bound of every stage, in text."""
    prepare = config.prepare
    a_query = prepare.negatives + prepare.easy_negatives + prepare.max_positives
    yield (
        f"Over larger collections: {machines.devices} x {machines.device.name}, "
        f"{machines.cores} cores, passages of {counts.chars:.0f} characters and pairs of "
        f"{counts.lengths.mean():.0f} tokens as in this config; nodes of "
        f"{HOST_MEMORY / 1e9:.0f} GB and {NETWORK * 8 / 1e9:.0f} Gbit/s, assumed."
    )
    for scale in SCALES:
        grown = _bounded(config, scaled(counts, scale, a_query))
        model = CostModel(config, grown, machines)
        by_stage: dict[str, list[Stage]] = {}
        for stage in model.stages():
            by_stage.setdefault(stage.stage, []).append(stage)
        yield f"{scale.name}: {scale.text}"
        for name, stages in by_stage.items():
            hours = sum(stage.total for stage in stages) / 3600
            yield f"  {name:15}{hours:>12,.1f} h  {_bound(name, grown, config, machines)}"


def _bounded(config: Config, counts: Counts) -> Counts:
    """The language model's data stay what the config allows."""
    budget = config.prepare.max_block_tokens
    if budget is not None:
        blocks = min(counts.blocks, budget // config.prepare.block_length)
        return replace(counts, blocks=blocks)
    return counts


def _bound(stage: str, counts: Counts, config: Config, machines: Machines) -> str:
    """What the stage meets first, with its figure."""
    tokens = counts.text_chars / CHARS_PER_TOKEN
    in_pairs = min(counts.passages, counts.pairs)  # passages, at most
    token_table = in_pairs * (tokens / max(1, counts.passages) * TOKEN + KEY_OBJECT)
    if stage == "prepare":
        on_disk = counts.passages * PASSAGE_ID + tokens * POSTING
        a_query = counts.passages / machines.host.search_passages
        return (
            f"one process reads the passages and hands them on; its disk holds {_size(on_disk)} "
            f"of ids and postings{_verdict(on_disk, HOST_DISK)}; a query's search is "
            f"{a_query:,.2g} s of a core; a source with candidates of its own needs no postings"
        )
    if stage == "score":
        requests = 3 * min(MAX_BLOCKS, counts.pairs)
        return (
            f"every actor fetches all tokens, {tokens * TOKEN / NETWORK / 60:,.1f} min, and holds "
            f"those of the pairs, {_size(token_table)}{_verdict(token_table)}; {requests:,} "
            f"requests for blocks, {requests * S3_PUT:.2f} dollars; the driver plans "
            f"{counts.pairs:,} pairs"
        )
    if stage in ("finetune", "distill-ranker"):
        held = counts.pairs * PAIR_OBJECT + token_table
        return f"every worker holds all pairs and their tokens, {_size(held)}{_verdict(held)}"
    if stage == "distill-lm":
        held = counts.blocks * config.prepare.block_length * TOKEN
        return f"every worker's disk holds all blocks, {_size(held)}{_verdict(held, HOST_DISK)}"
    if stage == "evaluate":
        return "one process, one device: more of them do not help; it grows with the queries alone"
    return "one process, small"


def _verdict(held: float, room: float = HOST_MEMORY) -> str:
    """Whether a node can hold it."""
    return "" if held <= room else f" (STOPS HERE: {held / room:,.1f} times a node)"


def _size(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))
