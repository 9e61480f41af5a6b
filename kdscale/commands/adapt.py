"""`kdscale adapt`: update a student for new queries, and keep the old one unless that is better."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdscale.commands import add_set

KEPT = 3  # the exit code where the student stays as it was


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    adapt = commands.add_parser(
        "adapt",
        help="update a student for new queries, and keep the old one unless that is better",
        description="Train a student further on new queries and replayed old ones. The update is "
        "taken (exit code 0) if held-out new queries improve and the old dev queries lose less "
        f"than evaluate.margin; else the student stays as it is (exit code {KEPT}), and it is said "
        "why.",
    )
    adapt.add_argument(
        "student", metavar="STUDENT", help="students/KEY of the config's store, or its URI"
    )
    adapt.add_argument(
        "--config", type=Path, required=True, metavar="CONFIG", help="that made the student"
    )
    add_set(adapt)
    adapt.add_argument(
        "--queries", type=Path, required=True, metavar="F",
        help="the new queries: BEIR's queries.jsonl, TREC topics, id TAB text, or Parquet",
    )  # fmt: skip
    adapt.add_argument(
        "--qrels", type=Path, required=True, metavar="F", help="their relevant passages"
    )
    adapt.add_argument(
        "--candidates", type=Path, metavar="F", help="a run; default: BM25 over the collection"
    )
    adapt.add_argument(
        "--replay", type=float, default=0.5, metavar="SHARE",
        help="of old queries among those learned from (default 0.5)",
    )  # fmt: skip
    adapt.add_argument(
        "--holdout", type=float, default=0.4, metavar="SHARE",
        help="of the new queries, half to stop by and half to judge by (default 0.4)",
    )  # fmt: skip
    adapt.add_argument(
        "--margin", type=float, metavar="D", help="overrides evaluate.margin for this judgment"
    )
    adapt.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="put the updated student there as well"
    )
    adapt.set_defaults(run=_adapt)


def _adapt(args: argparse.Namespace) -> int:
    from kdscale.adaptation.acceptance import KeptError
    from kdscale.adaptation.update import Update, update_student
    from kdscale.evaluation.measures import check_measures
    from kdscale.experiment.lineage import find_student, origin_of
    from kdscale.experiment.load import load_config
    from kdscale.progress import Reporter
    from kdscale.store import open_store
    from kdscale.store.pull_push import pull

    given = [] if args.margin is None else [f"evaluate.margin={args.margin}"]
    config = load_config(args.config, [*args.set, *given])
    check_measures(config)
    update = Update(args.queries, args.qrels, args.candidates, args.replay, args.holdout)
    update.check()
    store, reporter = open_store(config.storage.uri), Reporter()
    store.preflight()
    origin = origin_of(store, find_student(store, args.student))
    try:
        updated = update_student(config, store, origin, update, reporter)
    except KeptError as kept:
        for line in kept.verdict.lines():
            reporter.info(line)
        reporter.info(f"kept: {origin.student.uri} stays as it is")
        return KEPT
    for line in updated.facts["update"]["lines"]:
        reporter.info(line)
    reporter.info(f"accepted: {updated.uri}")
    if args.output:
        pull(updated.uri, args.output, reporter)
        reporter.info(f"and in {args.output}")
    return 0
