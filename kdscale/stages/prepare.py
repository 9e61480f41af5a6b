"""From a source to a dataset, and from a dataset to tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdscale.config import Prepare
from kdscale.data.candidates import Bm25, candidates_by_query, search_with_ray, source_candidates
from kdscale.data.clean import RejectLog
from kdscale.data.dataset import STATS, TOKENS_INFO, Dataset, flatten
from kdscale.data.ingest import (
    TEXT,
    ingest_extra_text,
    ingest_negatives,
    ingest_passages,
    parse_in_parallel,
)
from kdscale.data.pairs import PairSampler, pair_table
from kdscale.data.queries import TRAIN
from kdscale.data.raymap import BLOCK_ROWS, in_blocks
from kdscale.data.readers import open_reader
from kdscale.data.readers.base import ParallelReader, Reader
from kdscale.data.schema import (
    BLOCKS,
    CANDIDATES,
    PAIRS,
    PASSAGE_TOKENS,
    PASSAGES,
    QRELS,
    QUERIES,
    QUERY_TOKENS,
)
from kdscale.data.shards import write_shards, write_table
from kdscale.data.splits import QuerySet, Split, read_query_sets
from kdscale.data.tokenise import block_table, cut_column, pack_blocks, tokenise_tables
from kdscale.errors import KdscaleError
from kdscale.models.encode import KEPT_TOKENS, PairEncoder
from kdscale.models.pretrained import (
    check_max_length,
    load_tokenizer,
    max_positions,
    read_config,
    resolve_model,
)
from kdscale.runtime import ray_session
from kdscale.stages.context import StageContext
from kdscale.store.artifact import sha256_file

MIN_BLOCK = 8  # tokens


def run_dataset(ctx: StageContext) -> dict[str, Any]:
    """Passages, queries, qrels, candidates and training pairs as Parquet.

    Raises KdscaleError for a source that cannot be used: too many refused lines (a copy of them
    stays in the workspace), no passages, a split without queries, splits that do not fit.
    """
    prepare = ctx.config.prepare
    reader = open_reader(ctx.config.source)
    with (
        RejectLog(ctx.out / "rejected.jsonl", prepare.max_reject_fraction) as log,
        ray_session(ctx.config.cluster, ctx.reporter) as ray,
    ):
        if isinstance(reader, ParallelReader):
            with ctx.reporter.task("parsing files") as task:
                parse_in_parallel(reader, task)
        with ctx.reporter.task("reading and cleaning passages") as task:
            passages, cut = ingest_passages(reader.passages(), log, prepare.max_chars, task)
        log.check("passages", ctx.workspace)
        if not passages.num_rows:
            raise KdscaleError("the source has no passages; check the files that `source` names")
        write_shards(ctx.out / "passages", passages, PASSAGES, prepare.shards)
        rows = {pid: row for row, pid in enumerate(passages["pid"].to_pylist())}
        sets = read_query_sets(reader, prepare, ctx.config.seed, log, rows, ctx.workspace)
        splits = [split for query_set in sets for split in query_set.splits]
        for split in splits:
            write_table(
                ctx.out / "queries" / f"{split.name}.parquet", split.queries_table(), QUERIES
            )
            write_table(ctx.out / "qrels" / f"{split.name}.parquet", split.qrels_table(), QRELS)
        pairs = PAIRS.empty_table()
        for split, found, known in _candidates(ctx, ray, reader, log, sets, passages, rows):
            write_table(ctx.out / "candidates" / f"{split.name}.parquet", found, CANDIDATES)
            if split.name == TRAIN:
                given = _given_negatives(ctx, reader, log, split, known, rows)
                pairs = _pairs(prepare, ctx.config.seed, split, found, list(rows), given)
        write_shards(ctx.out / "pairs", pairs, PAIRS, prepare.shards)
        lines = log.counts()
    stats = {
        "splits": [split.name for split in splits],
        "passages": passages.num_rows,
        "passages_cut": cut,
        "queries_cut": sum(query_set.texts_cut for query_set in sets),
        "queries": {split.name: split.counts for split in splits},
        "pairs": pairs.num_rows,
        "lines": lines,
    }
    (ctx.out / STATS).write_text(json.dumps(stats, indent=1), encoding="utf-8")
    _tell(ctx, stats)
    return stats


def run_tokens(ctx: StageContext) -> dict[str, Any]:
    """Token ids of passages and queries, and the token blocks of the language-model stage.

    Raises KdscaleError where the tokenizer or the lengths asked for do not suit the teacher.
    """
    prepare, dataset = ctx.config.prepare, Dataset(ctx.inputs["dataset"].path)
    encoder = _pair_encoder(ctx)
    encoder.save(ctx.out / "tokenizer")
    tokenizer_json = ctx.out / "tokenizer" / "tokenizer.json"
    passages = dataset.passages()
    with ray_session(ctx.config.cluster, ctx.reporter):
        starts = range(0, passages.num_rows, BLOCK_ROWS)
        tables = (passages.slice(start, BLOCK_ROWS) for start in starts)
        with ctx.reporter.task("tokenising passages", passages.num_rows) as task:
            tokens = tokenise_tables(tables, str(tokenizer_json), task)
        texts = tokens["ids"].chunks
        if prepare.extra_text:
            texts += _tokenise_extra(ctx, str(tokenizer_json))
    kept = cut_column(tokens["ids"], max(KEPT_TOKENS, prepare.max_length))
    table = pa.table([tokens["pid"], kept], schema=PASSAGE_TOKENS)
    write_shards(ctx.out / "passages", table, PASSAGE_TOKENS, prepare.shards)
    queries = _tokenise_queries(ctx, dataset, encoder)
    flat, offsets = flatten(pa.chunked_array(texts))
    blocks = pack_blocks(
        flat,
        np.diff(offsets),
        encoder.cls_id,
        encoder.sep_id,
        prepare.block_length,
        ctx.config.seed,
        prepare.max_block_tokens,
    )
    write_shards(ctx.out / "blocks", block_table(blocks), BLOCKS, prepare.shards)
    info = {
        "splits": dataset.splits(),
        "max_length": prepare.max_length,
        "block_length": prepare.block_length,
        "tokenizer": sha256_file(tokenizer_json),
        "passages": passages.num_rows,
        "queries": queries,
        "text_tokens": len(flat),
        "blocks": len(blocks),
    }
    (ctx.out / TOKENS_INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")
    ctx.reporter.info(f"  {len(flat)} tokens of text, {len(blocks)} blocks")
    return info


def _pair_encoder(ctx: StageContext) -> PairEncoder:
    """The teacher's tokenizer, once its model is known to read inputs as long as those asked."""
    prepare = ctx.config.prepare
    teacher = ctx.config.teachers[ctx.params.get("teacher", 1) - 1]
    path = resolve_model(teacher.model, teacher.revision)
    config = read_config(path, teacher.revision)
    check_max_length(config, prepare.max_length)
    limit = max_positions(config)
    if not MIN_BLOCK <= prepare.block_length <= limit:
        raise KdscaleError(
            f"prepare.block_length is {prepare.block_length}; the model {teacher.model!r} reads "
            f"at most {limit} tokens and a block has at least {MIN_BLOCK}: set it between them"
        )
    encoder = PairEncoder(load_tokenizer(teacher.model, teacher.revision), prepare.max_length)
    if encoder.cls_id is None or encoder.sep_id is None:
        raise KdscaleError(
            f"the tokenizer of {teacher.model!r} has no CLS or SEP token, which blocks of text "
            "begin and end with; use a BERT-like teacher.model"
        )
    return encoder


def _tokenise_queries(ctx: StageContext, dataset: Dataset, encoder: PairEncoder) -> dict[str, int]:
    """Write the token ids of each split's queries; the number of queries of each."""
    counts = {}
    for split in dataset.splits():
        queries = dataset.queries(split)
        ids = pa.array(encoder.tokenise(queries["text"].to_pylist()), pa.list_(pa.int32()))
        table = pa.table([queries["qid"], ids], schema=QUERY_TOKENS)
        write_table(ctx.out / "queries" / f"{split}.parquet", table, QUERY_TOKENS)
        counts[split] = queries.num_rows
    return counts


def _tokenise_extra(ctx: StageContext, tokenizer_json: str) -> list[pa.Array]:
    prepare = ctx.config.prepare
    with (
        RejectLog(ctx.out / "rejected.jsonl", prepare.max_reject_fraction) as log,
        ctx.reporter.task("tokenising prepare.extra_text") as task,
    ):
        rows = ingest_extra_text(prepare.extra_text, log, prepare.max_chars, ctx.workspace)
        return tokenise_tables(in_blocks(rows, TEXT, text=0), tokenizer_json, task)["ids"].chunks


def _candidates(
    ctx: StageContext,
    ray: Any,
    reader: Reader,
    log: RejectLog,
    sets: list[QuerySet],
    passages: pa.Table,
    rows: dict[str, int],
) -> Iterator[tuple[Split, pa.Table, dict[str, str]]]:
    """(split, its CANDIDATES, every query of its set): the source's own, else BM25's."""
    prepare = ctx.config.prepare
    index = None
    for query_set in sets:
        depths = {
            s.name: prepare.depth.get(s.name, prepare.default_depth) for s in query_set.splits
        }
        own = reader.candidates(query_set.name)
        if own is not None:
            kind = f"candidates/{query_set.name}"
            wanted = [qid for split in query_set.splits for qid in split.texts]
            known, deepest = query_set.known, max(depths.values())
            found = source_candidates(own, kind, log, known, wanted, rows, deepest)
            log.check(kind, ctx.workspace)
        for split in query_set.splits:
            depth = depths[split.name]
            if own is not None:
                mine = pc.is_in(found["qid"], value_set=pa.array(split.texts, pa.string()))
                table = found.filter(pc.and_(mine, pc.less_equal(found["rank"], depth)))
            else:
                if index is None:
                    ctx.reporter.info("  building the BM25 index")
                    pids, texts = passages["pid"].combine_chunks(), passages["text"].to_pylist()
                    index = ray.put(Bm25(pids, texts, prepare.bm25_k1, prepare.bm25_b))
                table = _search(ctx, ray, index, split, depth)
            yield split, table, query_set.known


def _search(ctx: StageContext, ray: Any, index: Any, split: Split, depth: int) -> pa.Table:
    tables = [CANDIDATES.empty_table()]
    with ctx.reporter.task(f"BM25 candidates of {split.name}", len(split.texts)) as task:
        for done, table in search_with_ray(ray, index, split.queries_table(), depth):
            tables.append(table)
            task.advance(done)
    return pa.concat_tables(tables)


def _given_negatives(
    ctx: StageContext,
    reader: Reader,
    log: RejectLog,
    split: Split,
    known: dict[str, str],
    rows: dict[str, int],
) -> dict[str, list[str]]:
    items = reader.negatives()
    if items is None:
        return {}
    prepare = ctx.config.prepare
    negatives = ingest_negatives(
        items, log, known, split.judgments, rows, prepare.min_grade, prepare.negatives
    )
    log.check("negatives", ctx.workspace)
    return negatives


def _pairs(
    prepare: Prepare,
    seed: int,
    split: Split,
    candidates: pa.Table,
    pids: list[str],
    given: dict[str, list[str]],
) -> pa.Table:
    sampler = PairSampler(
        pids,
        seed,
        prepare.negatives,
        prepare.skip_top,
        prepare.max_positives,
        prepare.min_grade,
        prepare.easy_negatives,
    )
    found = candidates_by_query(candidates)
    return pair_table(
        (qid, sampler.sample(qid, split.judgments[qid], found.get(qid, ()), given.get(qid, ())))
        for qid in split.texts
    )


def _tell(ctx: StageContext, stats: dict[str, Any]) -> None:
    queries = ", ".join(f"{n} {c['kept']}" for n, c in stats["queries"].items())
    ctx.reporter.info(
        f"  {stats['passages']} passages; queries: {queries}; {stats['pairs']} training pairs"
    )
    refused = {k: c["rejected"] for k, c in stats["lines"].items() if c["rejected"]}
    if refused:
        counts = ", ".join(f"{n} of {kind}" for kind, n in refused.items())
        ctx.reporter.warn(f"refused lines: {counts} (rejected.jsonl has each with its reason)")
    for name, counts in stats["queries"].items():
        if counts["dropped"]:
            what = "relevant passage" if name == TRAIN else "judgment"
            ctx.reporter.warn(f"{counts['dropped']} {name} queries have no {what}, left out")
