"""Rerank a run with a ranker: what `kdscale rank` does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from kdscale.bounds import Count, check_number
from kdscale.data.lines import STANDARD, read_lines, written_whole
from kdscale.data.queries import describe, ids_of, renamed, same_numbers
from kdscale.data.readers.base import Reject
from kdscale.data.runfiles import run_lines
from kdscale.data.runs import read_rankings, write_run
from kdscale.data.texts import Texts, read_passages, read_queries
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Query, count_pairs, score_queries, scoring_device
from kdscale.models.encode import PairEncoder, length_of
from kdscale.models.onnx_ranker import OnnxScorer
from kdscale.models.pretrained import load_tokenizer, max_positions, read_config, resolve_model
from kdscale.models.ranker import PairScorer, Scorer, load_ranker
from kdscale.progress import Reporter

TOKENISE_BATCH = 512  # texts
Backend = Literal["torch", "onnx"]
TokenIds = dict[str, np.ndarray]  # id -> [tokens] int32


def rerank(
    model: str,
    *,
    queries: Path,
    passages: Path,
    run: Path,
    output: Path,
    depth: int | None,
    batch_tokens: int | None,
    reporter: Reporter,
    backend: Backend = "torch",
) -> int:
    """Write the run's candidates in the order of the model's raw logits; how many there are.

    model: a ranker's directory, or a hub id; depth: candidates a query that are kept (the rest
    is left out), None for all; backend "onnx" runs the model.onnx of the directory. The run is
    read query by query, twice, so that of the passages only those that it names are held, as
    token ids. `output` appears when it is complete.

    Raises KdscaleError for a file that is absent or malformed, and for an id of the run that
    the queries or passages lack, naming the line.
    """
    _check(run, output, depth, batch_tokens)
    scorer = load_scorer(model, batch_tokens, backend)
    wanted_queries, wanted_passages, pairs = _wanted(run, depth, reporter)
    tokenise = scorer.encoder.tokenise
    texts = read_queries(queries, reporter.info)
    query_ids = _token_ids(texts, wanted_queries, "queries", tokenise, reporter)
    if query_ids.keys() < wanted_queries:
        names = same_numbers(ids_of(read_queries(queries)), wanted_queries)
        if names:
            reporter.info(f"{describe(names, run.name, queries.name)}")
            again = renamed(read_queries(queries), {known: name for name, known in names.items()})
            query_ids = _token_ids(again, wanted_queries, "queries", tokenise, reporter)
    _check_complete(run, 0, "query", query_ids, wanted_queries, queries)
    longest = max(map(len, query_ids.values()), default=0)
    tokenise = partial(tokenise, keep=scorer.encoder.enough(longest))
    passage_ids = _token_ids(
        read_passages(passages), wanted_passages, "passages", tokenise, reporter
    )
    _check_complete(run, 1, "passage", passage_ids, wanted_passages, passages)

    def candidates() -> Iterator[Query]:
        for qid, pids in _groups(run, depth):
            yield qid, pids, [(query_ids[qid], passage_ids[pid]) for pid in pids]

    tag = re.sub(r"\s+", "-", Path(model).name) or "kdscale"
    with written_whole(output) as part, reporter.task("ranking", pairs) as task:
        write_run(part, count_pairs(score_queries(scorer, candidates()), task), tag)
    return pairs


def _check(run: Path, output: Path, depth: int | None, batch_tokens: int | None) -> None:
    if not run.is_file():
        raise KdscaleError(f"run: no file {run}; give a run (qid Q0 pid rank score tag)")
    check_number(Count, depth, "--depth")
    check_number(Count, batch_tokens, "--batch-tokens")
    if output == STANDARD:
        return
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise KdscaleError(f"output: {output} is no file in a folder that exists; mend the path")
    if output.suffix == ".gz":
        raise KdscaleError(f"output: {output} would be plain text; leave out .gz")
    if output.exists() and output.samefile(run):
        raise KdscaleError(f"output: {output} is the run itself; write to another file")


def load_scorer(model: str, batch_tokens: int | None, backend: Backend) -> PairScorer:
    """A ranker's folder or hub id as a scorer of pairs as long as its tokenizer and its model both
    allow. Raises KdscaleError where neither says how long."""
    path = resolve_model(str(model))
    tokenizer = load_tokenizer(path)
    limit = max_positions(read_config(path))
    if limit is None:
        limit = length_of(tokenizer, path)
    encoder = PairEncoder(tokenizer, min(tokenizer.model_max_length, limit))
    if backend == "onnx":
        return OnnxScorer(path, encoder, batch_tokens)
    return Scorer(load_ranker(path), encoder, batch_tokens, scoring_device())


def _groups(run: Path, depth: int | None) -> Iterator[tuple[str, list[str]]]:
    for qid, ranking, is_ranked in read_rankings(run):
        if depth is not None and len(ranking) > depth and not is_ranked:
            raise KdscaleError(
                f"{run}: nothing in it ranks the {len(ranking)} passages of query {qid}, so that "
                f"the first {depth} could be taken; leave --depth out, or give a run with scores"
            )
        yield qid, [pid for pid, _ in ranking[:depth]]


def _wanted(run: Path, depth: int | None, reporter: Reporter) -> tuple[set[str], set[str], int]:
    """The ids of the run's queries and passages, and its number of pairs."""
    qids, pids, pairs = set(), set(), 0
    reporter.info(f"  {run.name}: read as {run_lines(run).columns}")
    with reporter.task("reading the run") as task:
        for qid, of_query in _groups(run, depth):
            qids.add(qid)
            pids.update(of_query)
            pairs += len(of_query)
            task.advance(len(of_query))
    if not pairs:
        raise KdscaleError(f"run: {run} has no lines; give a run (qid Q0 pid rank score tag)")
    return qids, pids, pairs


def _token_ids(
    texts: Texts,
    wanted: set[str],
    what: str,
    tokenise: Callable[[list[str]], list[np.ndarray]],
    reporter: Reporter,
) -> TokenIds:
    """Token ids of the wanted texts; reading ends when all are found."""
    ids: TokenIds = {}
    batch: dict[str, str] = {}
    refused, first = 0, None
    with reporter.task(f"reading {what}", len(wanted)) as task:
        for item in texts:
            if isinstance(item, Reject):
                refused, first = refused + 1, first or item
            elif item[0] in wanted and item[0] not in ids:
                batch.setdefault(*item)
            if len(batch) == TOKENISE_BATCH or len(ids) + len(batch) == len(wanted):
                ids.update(zip(batch, tokenise(list(batch.values())), strict=True))
                task.update(len(ids))
                batch = {}
            if len(ids) == len(wanted):
                break
        ids.update(zip(batch, tokenise(list(batch.values())), strict=True))
    if first is not None:
        reporter.warn(
            f"{first.file}: {refused} lines passed over (first: line {first.line}, {first.reason})"
        )
    return ids


def _check_complete(
    run: Path, column: int, what: str, ids: TokenIds, wanted: set[str], source: Path
) -> None:
    """Raise KdscaleError naming the first line of the run whose id has no text.

    column: of a parsed line of the run, the id's place.
    """
    missing = wanted - ids.keys()
    if not missing:
        return
    parse = run_lines(run).form.parse
    for item in read_lines(run):
        if isinstance(item, Reject):
            continue
        number, line = item
        identifier = parse(line)[column]
        if identifier in missing:
            raise KdscaleError(
                f"{run}, line {number}: {what} {identifier!r} is not in {source} "
                f"({len(missing)} such); give the file that has it, or remove the line"
            )
