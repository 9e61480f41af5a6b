"""The commands about a store: pull, push, artifacts, gc, results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdscale.store import Store


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    pull = commands.add_parser("pull", help="fetch one artifact, such as a student, from a store")
    pull.add_argument("uri", metavar="URI", help="STORE/KIND/KEY, as kdscale artifacts shows them")
    pull.add_argument("directory", type=Path, metavar="DIR", help="empty, or of an earlier pull")
    pull.set_defaults(run=_pull)

    push = commands.add_parser("push", help="send one artifact to a store")
    push.add_argument("directory", type=Path, metavar="DIR", help="an artifact, or a pulled one")
    push.add_argument("uri", metavar="URI", help="STORE/KIND/KEY")
    push.set_defaults(run=_push)

    artifacts = commands.add_parser("artifacts", help="what a store holds, and its lineage")
    artifacts.add_argument("uri", metavar="URI", help="the store: a folder or s3://bucket/prefix")
    artifacts.add_argument("--format", choices=("table", "json"), default="table")
    artifacts.set_defaults(run=_artifacts)

    gc = commands.add_parser(
        "gc",
        help="remove from a store what nothing refers to",
        description="Remove artifacts that no student, evaluation or report was made from, and "
        "half-written files and abandoned work older than a day. Not while a run is starting.",
    )
    gc.add_argument("uri", metavar="URI", help="the store: a folder or s3://bucket/prefix")
    gc.add_argument("--dry-run", action="store_true", help="print what would go")
    gc.add_argument(
        "--keep", action="append", default=[], metavar="KIND/KEY", help="keep this one as well"
    )
    gc.set_defaults(run=_gc)

    results = commands.add_parser(
        "results", help="the newest evaluation of a store, a row a system"
    )
    results.add_argument("uri", metavar="URI", help="the store, or one evaluation below it")
    results.add_argument("--format", choices=("table", "json", "csv"), default="table")
    results.set_defaults(run=_results)


def _pull(args: argparse.Namespace) -> int:
    from kdscale.progress import Reporter
    from kdscale.store.pull_push import pull

    reporter = Reporter()
    artifact = pull(args.uri, args.directory, reporter)
    reporter.info(f"{artifact.uri} is in {args.directory}, every digest checked")
    return 0


def _push(args: argparse.Namespace) -> int:
    from kdscale.progress import Reporter
    from kdscale.store.pull_push import push

    reporter = Reporter()
    first = push(args.directory, args.uri, reporter)
    reporter.info(f"{args.directory} {'is' if first else 'was already'} in {args.uri}")
    return 0


def _existing(uri: str) -> Store:
    """The store at `uri`. Raises KdscaleError for a folder that is not there: a slip of the
    keyboard must not pass for an empty store."""
    from kdscale.errors import KdscaleError
    from kdscale.store import LocalStore, open_store

    store = open_store(uri)
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise KdscaleError(f"no store at {store.root}; give what storage.uri of a config names")
    return store


def _artifacts(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.filesize import decimal

    from kdscale.store.inventory import all_artifacts, artifacts_json, artifacts_table

    store = _existing(args.uri)
    store.preflight(writing=False)
    artifacts = all_artifacts(store)
    if args.format == "json":
        print(artifacts_json(artifacts))
        return 0
    console = Console(highlight=False)
    if artifacts:
        table = artifacts_table(artifacts)
        # A pipe, or a narrow terminal, must not cut names.
        console.width = max(console.width, Console(width=10_000).measure(table).maximum)
        console.print(table)
    total = decimal(sum(artifact.bytes for artifact in artifacts))
    console.print(
        f"{len(artifacts)} artifacts, {total}, in {store.uri}", markup=False, soft_wrap=True
    )
    return 0


def _gc(args: argparse.Namespace) -> int:
    from rich.filesize import decimal

    from kdscale.progress import Reporter
    from kdscale.store.inventory import make_plan

    store, reporter = _existing(args.uri), Reporter()
    store.preflight(writing=not args.dry_run)
    plan = make_plan(store, args.keep)
    done = "would remove" if args.dry_run else "removed"
    for holding, reason in plan.spared:
        reporter.info(f"kept {holding.name}, {decimal(holding.bytes)}: {reason}")
    for holding, reason in plan.remove:
        if not args.dry_run:
            store.discard(holding)
        reporter.info(f"{done} {holding.name}, {decimal(holding.bytes)}: {reason}")
    total = decimal(sum(holding.bytes for holding, _ in plan.remove))
    reporter.info(f"{done} {len(plan.remove)} in {store.uri}, {total}")
    return 0


def _results(args: argparse.Namespace) -> int:
    from kdscale.evaluation import results

    if args.format == "table":
        print_table(args.uri)
    else:
        rows = results.load_results(args.uri)
        print(results.format_json(rows) if args.format == "json" else results.format_csv(rows))
    return 0


def print_table(uri: str) -> None:
    from rich.console import Console

    from kdscale.evaluation.results import load_systems
    from kdscale.report.table import WIDTH, results_table

    systems, settings = load_systems(uri)
    console = Console(highlight=False)
    # A pipe, or a narrow terminal, must not cut numbers.
    console.width = max(WIDTH, console.width)
    console.print(results_table(systems, settings["primary"], settings["baseline"]))
