"""`kdscale rank`: rerank a run with any ranker."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    rank = commands.add_parser(
        "rank", help="rerank a run with any ranker",
        description="Write the candidates of a run in the order of a ranker's raw logits. The "
        "files may be pipes. Give - for one of them to read standard input, and -o - to write to "
        "standard output.",
    )  # fmt: skip
    rank.add_argument("model", metavar="MODEL", help="a ranker directory (a student, a teacher)")
    formats = "JSON lines, id TAB text, TREC SGML or Parquet"
    rank.add_argument("--queries", required=True, type=Path, metavar="F", help=formats)
    rank.add_argument("--passages", required=True, type=Path, metavar="F", help=formats)
    rank.add_argument(
        "--run", required=True, type=Path, metavar="F", dest="trec_run",
        help="the candidates: a TREC run, or another form of docs/reference/input-files.md",
    )  # fmt: skip
    rank.add_argument(
        "-o", "--output", required=True, type=Path, metavar="F", help="the TREC run to write"
    )
    rank.add_argument("--depth", type=int, help="rerank so many candidates a query (default: all)")
    rank.add_argument(
        "--batch-tokens", type=int, help="padded tokens a forward (default: as suits the device)"
    )
    rank.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: the model.onnx of kdscale export",
    )
    rank.set_defaults(run=_rank)


def _rank(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kdscale.data.lines import STANDARD, readable_again
    from kdscale.evaluation.rerank import rerank
    from kdscale.progress import Reporter

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    names = (args.queries, args.passages, args.trec_run)
    if names.count(STANDARD) > 1:
        raise KdscaleError("rank: standard input (-) is one file; name the others")
    with contextlib.ExitStack() as copies:
        queries, passages, run = (copies.enter_context(readable_again(name)) for name in names)
        rerank(
            args.model,
            queries=queries,
            passages=passages,
            run=run,
            output=args.output,
            depth=args.depth,
            batch_tokens=args.batch_tokens,
            reporter=reporter,
            backend=args.backend,
        )
    reporter.info(f"written to {args.output}")
    return 0
