"""From a dataset to its tokens."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdscale.cluster.session import ray_session
from kdscale.data.clean import RejectLog
from kdscale.data.dataset import TOKENS_INFO, Dataset
from kdscale.data.ingest import TEXT, ingest_extra_text
from kdscale.data.parallel import BLOCK_ROWS, in_blocks
from kdscale.data.schema import BLOCKS, PASSAGE_TOKENS, QUERY_TOKENS
from kdscale.data.shards import stream_shards, write_table
from kdscale.data.tokenise import (
    TokenSpool,
    are_many,
    block_table,
    count_cuts,
    cut_column,
    describe,
    pack_blocks,
    tokenise_tables,
)
from kdscale.experiment.context import DATASET, StageContext
from kdscale.experiment.settings import TokenSettings
from kdscale.models.encode import KEPT_TOKENS, PairEncoder
from kdscale.models.fit import teacher_encoder
from kdscale.store.artifact import sha256_file


def run(ctx: StageContext[TokenSettings]) -> dict[str, Any]:
    """Token ids of passages and queries, and the token blocks of the language-model stage.

    Raises KdscaleError where the tokenizer or the lengths asked for do not suit the teacher.
    """
    prepare, dataset = ctx.settings.prepare, Dataset(ctx.inputs[DATASET].path)
    encoder = teacher_encoder(ctx.settings.tokenizer.model, prepare)
    encoder.save(ctx.out / "tokenizer")
    tokenizer_json = ctx.out / "tokenizer" / "tokenizer.json"
    with (
        tempfile.TemporaryDirectory(dir=ctx.out, prefix="scratch-") as folder,
        closing(TokenSpool(Path(folder))) as spool,
    ):
        scratch = Path(folder)
        with ray_session(ctx.cluster, ctx.reporter):
            kept = _tokenise_passages(ctx, dataset, str(tokenizer_json), spool)
            passages = stream_shards(
                ctx.out / "passages", kept, PASSAGE_TOKENS, prepare.shards, scratch
            )
            if ctx.settings.extra_text:
                _tokenise_extra(ctx, str(tokenizer_json), spool)
        queries = _tokenise_queries(ctx, dataset, encoder)
        lengths = spool.lengths()[:passages]  # those of extra text come after them
        cuts = count_cuts(dataset, encoder, ctx.out / "passages", lengths, queries)
        # `teacher_encoder` has seen that it has them.
        assert encoder.cls_id is not None and encoder.sep_id is not None
        packed = pack_blocks(
            spool,
            encoder.cls_id,
            encoder.sep_id,
            prepare.block_length,
            ctx.settings.seed,
            prepare.max_block_tokens,
        )
        tables = (block_table(blocks) for blocks in packed)
        blocks = stream_shards(ctx.out / "blocks", tables, BLOCKS, prepare.shards, scratch)
        text_tokens = int(spool.lengths().sum(dtype="int64"))
    info = {
        "splits": dataset.splits(),
        "max_length": prepare.max_length,
        "block_length": prepare.block_length,
        "tokenizer": sha256_file(tokenizer_json),
        "passages": passages,
        "queries": {split: len(of_split) for split, of_split in queries.items()},
        "pairs": cuts,
        "text_tokens": text_tokens,
        "blocks": blocks,
    }
    (ctx.out / TOKENS_INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")
    ctx.reporter.info(f"  {text_tokens} tokens of text, {blocks} blocks")
    for split, counts in cuts.items():
        said = describe(split, counts, prepare.max_length)
        if said and are_many(counts):
            ctx.reporter.warn(said)
        elif said:
            ctx.reporter.info(f"  {said}")
    return info


def _tokenise_queries(
    ctx: StageContext[TokenSettings], dataset: Dataset, encoder: PairEncoder
) -> dict[str, dict[str, int]]:
    """Write the token ids of each split's queries, as much as a pair can use; split -> qid ->
    tokens of the whole query."""
    lengths, longest = {}, _longest(ctx)
    for split in dataset.splits():
        queries = dataset.queries(split)
        whole = encoder.tokenise(queries["text"].to_pylist(), keep=sys.maxsize)
        ids = pa.array([ids[:longest] for ids in whole], pa.list_(pa.int32()))
        table = pa.table([queries["qid"], ids], schema=QUERY_TOKENS)
        write_table(ctx.out / "queries" / f"{split}.parquet", table, QUERY_TOKENS)
        lengths[split] = dict(zip(queries["qid"].to_pylist(), map(len, whole), strict=True))
    return lengths


def _longest(ctx: StageContext[TokenSettings]) -> int:
    """As `PairEncoder.tokenise` keeps them."""
    return max(KEPT_TOKENS, ctx.settings.prepare.max_length)


def _tokenise_passages(
    ctx: StageContext[TokenSettings], dataset: Dataset, tokenizer_json: str, spool: TokenSpool
) -> Iterator[pa.Table]:
    """PASSAGE_TOKENS, cut to what a pair can use; the spool gets them whole."""
    longest = _longest(ctx)
    with ctx.reporter.task("tokenising passages", dataset.passage_count()) as task:
        for table in tokenise_tables(dataset.passages(BLOCK_ROWS), tokenizer_json, task):
            spool.add(table["ids"])
            yield pa.table([table["pid"], cut_column(table["ids"], longest)], schema=PASSAGE_TOKENS)


def _tokenise_extra(
    ctx: StageContext[TokenSettings], tokenizer_json: str, spool: TokenSpool
) -> None:
    prepare = ctx.settings.prepare
    files = [file.path for file in ctx.settings.extra_text]
    with (
        RejectLog(ctx.out / "rejected.jsonl", prepare.max_reject_fraction) as log,
        ctx.reporter.task("tokenising prepare.extra_text") as task,
    ):
        rows = ingest_extra_text(files, log, prepare.max_chars, ctx.workspace)
        for table in tokenise_tables(in_blocks(rows, TEXT, text=0), tokenizer_json, task):
            spool.add(table["ids"])
