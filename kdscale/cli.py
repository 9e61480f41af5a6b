"""The command line: parse, call, print. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kdscale import __version__, store_commands, sweep_commands
from kdscale.adaptation import command as adapt_command
from kdscale.advice import command as advice_command
from kdscale.arguments import add_set
from kdscale.errors import KdscaleError
from kdscale.export import command as export_command
from kdscale.plaintext import plain_where_needed
from kdscale.planning import command as plan_command

if TYPE_CHECKING:
    from kdscale.config import Config
    from kdscale.pipeline import Outcome
    from kdscale.progress import Reporter

STAGES = {
    "prepare": "read the source: passages, queries, candidates, training pairs, token blocks",
    "finetune": "fine-tune the teacher ranker",
    "score": "score every training pair with the teacher",
    "distill-lm": "distil a student language model for each student shape",
    "distill-ranker": "train the student rankers: every strategy and the baseline",
    "evaluate": "rankings, measures, significance, latency",
    "report": "the page and the table",
}
PART_OF = {"ensemble": "score"}  # a stage without a command of its own, and whose that is


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        plain_where_needed(stream)
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    # A job manager stops a process with SIGTERM: clean up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        return args.run(args)
    except KdscaleError as error:
        print(f"kdscale: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kdscale: stopped; finished stages are kept, run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdscale",
        description="Distil a BERT cross-encoder ranker into a student about nine times faster.",
    )
    parser.add_argument("--version", action="version", version=f"kdscale {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser("run", help="the whole experiment of a config file")
    _config_arguments(run)
    run.set_defaults(run=_run, stage=None)
    for stage, text in STAGES.items():
        command = commands.add_parser(stage, help=text, description=f"{text}, and what it needs")
        _config_arguments(command)
        if stage in ("distill-lm", "distill-ranker"):
            command.add_argument("--student", help="only this student shape")
        if stage == "distill-ranker":
            command.add_argument("--strategy", help="only this strategy")
        command.set_defaults(run=_run, stage=stage)

    submit = commands.add_parser("submit", help="the same as a job on a Ray cluster")
    submit.add_argument(
        "--address", required=True, metavar="URL", help="Ray's dashboard, http://HOST:8265"
    )
    submit.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    submit.add_argument(
        "--stage",
        choices=(*STAGES, "sweep"),
        help="only this stage and what it needs, or a sweep file",
    )
    add_set(submit)
    submit.add_argument("--resume", action="store_true", help="go on with a sweep")
    submit.add_argument("--detach", action="store_true", help="do not follow the job's log")
    submit.set_defaults(run=_submit)

    results = commands.add_parser(
        "results", help="the newest evaluation of a store, a row a system"
    )
    results.add_argument("uri", metavar="URI", help="the store, or one evaluation below it")
    results.add_argument("--format", choices=("table", "json", "csv"), default="table")
    results.set_defaults(run=_results)

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
        help="the candidates: a TREC run, or another form of docs/your-own-corpus.md",
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

    sweep_commands.add_to(commands)
    export_command.add_to(commands)
    store_commands.add_to(commands)
    advice_command.add_to(commands)
    plan_command.add_to(commands)
    adapt_command.add_to(commands)

    doctor = commands.add_parser(
        "doctor", help="check this machine, and a config, and say what to fix"
    )
    doctor.add_argument("config", type=Path, nargs="?", metavar="CONFIG")
    doctor.set_defaults(run=_doctor)
    return parser


def _config_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    add_set(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print what is cached and what would run"
    )


def _run(args: argparse.Namespace) -> int:
    from kdscale.configload import load_config
    from kdscale.pipeline import run_steps
    from kdscale.progress import Reporter
    from kdscale.store import open_store

    config = load_config(args.config, args.set)
    store = open_store(config.storage.uri)
    reporter = Reporter()
    wanted = _wanted(config, args)
    store.preflight(writing=not args.dry_run)
    if not args.dry_run:
        reporter.info(f"{config.name}: artifacts in {store.uri}")
    outcomes = run_steps(config, store, wanted, reporter, args.dry_run)
    if args.dry_run:
        for outcome in outcomes:
            reporter.info(f"{outcome.status:10} {outcome.step.stage:15} {outcome.step.name}")
        return 0
    if all(o.status == "cached" for o in outcomes):
        reporter.info("nothing to do: every stage is up to date")
    _show_report(outcomes, reporter)
    return 0


def _wanted(config: Config, args: argparse.Namespace) -> list[str] | None:
    """The steps of a stage command; None for all of them."""
    from kdscale.steps import build_steps

    if args.stage is None:
        return None
    steps = [s for s in build_steps(config).values() if PART_OF.get(s.stage, s.stage) == args.stage]
    for option, choose in (
        ("student", lambda s: s.params["student"]["name"]),
        ("strategy", lambda s: s.params["strategy"]),
    ):
        value = getattr(args, option, None)
        if value is not None:
            known = sorted({choose(s) for s in steps})
            steps = [s for s in steps if choose(s) == value]
            if not steps:
                raise KdscaleError(
                    f"--{option} {value}: the config has {', '.join(known) or 'none'}"
                )
    if not steps:
        raise KdscaleError(
            f"the config asks for no {args.stage}: it names no students, or no strategy that "
            "needs it; add students and ranker.strategies"
        )
    return [s.name for s in steps]


def _show_report(outcomes: list[Outcome], reporter: Reporter) -> None:
    """The table and where the page is, when they are among the outcomes."""
    by_name = {o.step.name: o.artifact for o in outcomes}
    if "evaluation" in by_name:
        _print_table(str(by_name["evaluation"].path))
    if "report" in by_name:
        reporter.info(f"page: {by_name['report'].path / 'index.html'}")


def _print_table(uri: str) -> None:
    from rich.console import Console

    from kdscale.evaluation.results import load_systems
    from kdscale.report.table import WIDTH, results_table

    systems, settings = load_systems(uri)
    console = Console(highlight=False)
    # A pipe, or a narrow terminal, must not cut numbers.
    console.width = max(WIDTH, console.width)
    console.print(results_table(systems, settings["primary"], settings["baseline"]))


def _submit(args: argparse.Namespace) -> int:
    from kdscale.progress import Reporter
    from kdscale.submit import submit

    return submit(
        args.address, args.config, args.stage, args.set, args.detach, Reporter(), args.resume
    )


def _results(args: argparse.Namespace) -> int:
    from kdscale.evaluation import results

    if args.format == "table":
        _print_table(args.uri)
    else:
        rows = results.load_results(args.uri)
        print(results.format_json(rows) if args.format == "json" else results.format_csv(rows))
    return 0


def _rank(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kdscale.data.streams import STANDARD, readable_again
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


def _doctor(args: argparse.Namespace) -> int:
    from kdscale.configload import load_config
    from kdscale.doctor.run import run_checks
    from kdscale.progress import Reporter

    config = load_config(args.config) if args.config else None
    checks = run_checks(config, Reporter())
    return 1 if any(c.status == "problem" for c in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
