"""`kdscale advise`: from a table of trials, which student to use."""

from __future__ import annotations

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    advise = commands.add_parser(
        "advise",
        help="from a table of trials: which student to use, and what to run if none will do",
        description="Name the strategy, shape and data budget that meet the needs, with the trials "
        "and tests that say so; where none does, what comes nearest, which need binds, and what "
        "to run next.",
    )
    advise.add_argument(
        "uri", metavar="URI", help="a store with a sweep, or a table of trials (.parquet)"
    )
    advise.add_argument(
        "--latency-ms", type=float, metavar="MS", help="a query may take so long to rank"
    )
    advise.add_argument(
        "--max-drop", type=float, default=0.01, metavar="D",
        help="a loss below this against the teacher does not matter (default 0.01)",
    )  # fmt: skip
    advise.add_argument(
        "--update-every", metavar="TIME", help="the student is trained again so often: 12h, 7d"
    )
    advise.add_argument(
        "--train-hours", type=float, metavar="H",
        help="one training may take so long (default: until the next update)",
    )  # fmt: skip
    advise.add_argument("--measure", help="default: the sweep's own, else nDCG@10")
    advise.add_argument(
        "--candidates", type=int, metavar="N",
        help="of a query, where they are not as many as the table's; latencies are extrapolated",
    )  # fmt: skip
    advise.add_argument(
        "--store", metavar="URI", help="of the students of a .parquet table, for shared costs"
    )
    advise.add_argument("--format", choices=("text", "json"), default="text")
    advise.set_defaults(run=_advise)


def _advise(args: argparse.Namespace) -> int:
    from kdscale.advice.decide import Needs, parse_duration

    every = args.update_every and parse_duration(args.update_every, "--update-every")
    needs = Needs(
        max_drop=args.max_drop,
        latency_ms=args.latency_ms,
        update_every_s=every,
        train_hours=args.train_hours,
        candidates=args.candidates,
        measure=args.measure,
    )

    from kdscale.advice import source, text
    from kdscale.advice.decide import advise
    from kdscale.store import open_store

    table, about, where, store = source.load(args.uri)
    if args.store:
        store = open_store(args.store)
        store.preflight(writing=False)
    shared = source.shared_costs(store, table) if store else {}
    advice = advise(table, about, needs, shared)
    if args.format == "json":
        import json

        print(json.dumps({"table": where, **text.as_json(advice)}, indent=1, ensure_ascii=False))
        return 0
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def say(lines: Any) -> None:
        for line in lines:
            console.print(line, markup=False)

    say(text.answer(advice))
    say(["", f"Why (the reasoning of {text.PAPER}, the figures of this table)"])
    say(f"  {line}" for line in text.reasons(advice))
    say([""])
    compared = text.table_of(advice)
    # A pipe, or a narrow terminal, must not cut figures.
    console.width = max(console.width, Console(width=10_000).measure(compared).maximum)
    console.print(compared)
    say(["", *text.following(advice)])
    say([f"{len(advice.judged)} settings, {table.num_rows} rows, from {where}"])
    return 0
