"""From a reader to checked tables: passages, queries and judgments."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import pyarrow as pa

from kdscale.data.clean import (
    DUPLICATE_ID,
    DUPLICATE_PAIR,
    EMPTY_TEXT,
    UNKNOWN_PASSAGE,
    UNKNOWN_QUERY,
    RejectLog,
    clean_table,
    clean_text,
    cut_text,
    fault_of,
)
from kdscale.data.lines import NOT_UTF8, is_utf8, read_lines
from kdscale.data.parallel import in_blocks, map_tables
from kdscale.data.pids import PassageIds
from kdscale.data.queries import Judgments
from kdscale.data.readers.base import ParallelReader, check_file
from kdscale.data.records import NO_TEXT, text_of_line
from kdscale.data.schema import PASSAGES
from kdscale.progress import Task
from kdscale.store import Workspace

EXTRA_TEXT = "prepare.extra_text"
UNITS_PER_BLOCK = 256  # half a second of parsing: smaller blocks cost Ray more than they save
TEXT = pa.schema([("text", pa.string())])
RAW = pa.schema([("number", pa.int64()), *PASSAGES])


def ingest_passages(
    items: Iterable[Any], log: RejectLog, max_chars: int, pids: PassageIds, task: Task
) -> Iterator[pa.Table]:
    """PASSAGES, cleaned, in the order read, and a column "cut": whether a text was cut. The ids
    are added to `pids`, with the keys of the texts."""
    kind = "passages"

    def readable() -> Iterator[tuple[int, str, str]]:
        for number, (pid, text) in log.accepted(kind, items):
            fault = fault_of(pid, text)
            if fault:
                log.reject(kind, number, fault, f"{pid} {text}")
            else:
                yield number, pid, text

    blocks = in_blocks(readable(), RAW, text=RAW.names.index("text"))
    for table in map_tables(blocks, clean_table, max_chars=max_chars):
        keep = []
        columns = (table[name].to_pylist() for name in (*RAW.names, "key"))
        for number, pid, text, key in zip(*columns, strict=True):
            fault = EMPTY_TEXT if not text else DUPLICATE_ID if not pids.add(pid, key) else None
            if fault:
                log.reject(kind, number, fault, f"{pid} {text}")
            keep.append(fault is None)
        yield table.select([*PASSAGES.names, "cut"]).filter(pa.array(keep))
        task.advance(table.num_rows)


def ingest_queries(
    items: Iterable[Any], kind: str, log: RejectLog, max_chars: int
) -> tuple[dict[str, str], int]:
    """qid -> cleaned text in the order read, and how many texts were cut."""
    queries: dict[str, str] = {}
    cut = 0
    for number, (qid, raw) in log.accepted(kind, items):
        fault = fault_of(qid, raw)
        text, was_cut = ("", False) if fault else cut_text(clean_text(raw), max_chars)
        if fault is None and not text:
            fault = EMPTY_TEXT
        elif fault is None and qid in queries:
            fault = DUPLICATE_ID
        if fault:
            log.reject(kind, number, fault, f"{qid} {raw}")
        else:
            queries[qid] = text
            cut += was_cut
    return queries, cut


def ingest_judgments(
    items: Iterable[Any],
    kind: str,
    log: RejectLog,
    queries: dict[str, str],
    passages: Container[str],
) -> Judgments:
    """qid -> pid -> grade in the order read; only of known queries and passages."""
    judgments: Judgments = {}
    for number, (qid, pid, grade) in log.accepted(kind, items):
        if qid not in queries:
            fault = UNKNOWN_QUERY
        elif pid not in passages:
            fault = UNKNOWN_PASSAGE
        elif pid in judgments.get(qid, ()):
            fault = DUPLICATE_PAIR
        else:
            judgments.setdefault(qid, {})[pid] = grade
            continue
        log.reject(kind, number, fault, f"{qid} {pid} {grade}")
    return judgments


def ingest_negatives(
    items: Iterable[Any],
    log: RejectLog,
    known: dict[str, str],
    judgments: Judgments,
    passages: Container[str],
    min_grade: int,
    limit: int,
) -> dict[str, list[str]]:
    """qid -> the first `limit` negatives that the source gives for it, relevant ones left out.

    known: every training query; judgments: of those that are used, the only ones kept here.
    """
    kind = "negatives"
    negatives: dict[str, list[str]] = {qid: [] for qid in judgments}
    for number, (qid, pid) in log.accepted(kind, items):
        if qid not in known:
            log.reject(kind, number, UNKNOWN_QUERY, f"{qid} {pid}")
        elif pid not in passages:
            log.reject(kind, number, UNKNOWN_PASSAGE, f"{qid} {pid}")
        elif qid in negatives:
            mine = negatives[qid]
            relevant = judgments[qid].get(pid, min_grade - 1) >= min_grade
            if len(mine) < limit and not relevant and pid not in mine:
                mine.append(pid)
    return negatives


def ingest_extra_text(
    paths: list[str], log: RejectLog, max_chars: int, keep: Workspace
) -> Iterator[tuple[str]]:
    """The cleaned text of each line of jsonl[.gz] files, for the language model alone."""
    for path in paths:
        for _, (line, raw) in log.accepted(path, read_lines(check_file(path, EXTRA_TEXT))):
            given = text_of_line(raw)
            if given is None:
                log.reject(path, line, NO_TEXT, raw)
                continue
            text, _ = cut_text(clean_text(given), max_chars)
            fault = NOT_UTF8 if not is_utf8(text) else EMPTY_TEXT if not text else None
            if fault:
                log.reject(path, line, fault, raw)
            else:
                yield (text,)
        log.check(path, keep)


def parse_in_parallel(reader: ParallelReader, task: Task) -> None:
    """Have Ray's workers parse the files of a source, and hand it the rows."""
    units = [json.dumps(unit) for unit in reader.units()]
    blocks = [
        pa.table({"json": units[start : start + UNITS_PER_BLOCK]})
        for start in range(0, len(units), UNITS_PER_BLOCK)
    ]

    def rows() -> Iterator[dict[str, Any]]:
        for table in map_tables(blocks, _parse_units, parse=type(reader).parse):
            for unit in table["json"].to_pylist():
                yield from json.loads(unit)
            task.advance(table.num_rows)

    task.update(0, total=len(units))
    reader.feed(rows())


def _parse_units(table: pa.Table, parse: Callable[[dict], list[dict]]) -> pa.Table:
    # A unit's rows travel as JSON: a list that is empty, or holds text that is not UTF-8, can.
    rows = [json.dumps(parse(json.loads(unit))) for unit in table["json"].to_pylist()]
    return pa.table({"json": pa.array(rows, pa.string())})
