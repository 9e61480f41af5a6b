"""`kdscale sweep`: many students, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.commands import add_set

if TYPE_CHECKING:
    from kdscale.sweep.record import Record


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    sweep = commands.add_parser(
        "sweep",
        help="many students: strategy, shape, data budget and settings, side by side",
        description="Train and measure every student of a search space with Ray Tune. What "
        "trials share is made once, and what is done is never done again.",
    )
    sweep.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file with `sweep`")
    add_set(sweep)
    how = sweep.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="resume one that was stopped")
    how.add_argument(
        "--dry-run", action="store_true", help="list the trials, what they share, and how long"
    )
    how.add_argument("--status", action="store_true", help="the results so far")
    sweep.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    from kdscale.progress import Reporter
    from kdscale.sweep.spec import load_sweep

    sweep, reporter = load_sweep(args.config, args.set), Reporter()
    if args.dry_run:
        from kdscale.sweep.dryrun import show_plan

        show_plan(sweep, reporter)
        return 0
    from kdscale.sweep.driver import open_record, run_sweep

    if args.status:
        record = open_record(sweep)
        record.store.preflight(writing=False)
    else:
        try:
            record = run_sweep(sweep, args.resume, reporter)
        except KeyboardInterrupt:
            reporter.warn("stopped; trials that have ended are kept, --resume resumes it")
            return 130
    _show(record)
    return 0


def _show(record: Record) -> None:
    from kdscale.errors import KdscaleError
    from kdscale.sweep.board import print_results

    found = record.read()
    if found is None:
        raise KdscaleError(
            f"{record.uri}: no trial has begun yet; run kdscale sweep without --status"
        )
    print_results(*found)
