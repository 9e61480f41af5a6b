"""`kdscale run`, the command of each stage, and `kdscale submit`, the same on a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.commands import add_set
from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.config import Config
    from kdscale.experiment.context import StepId
    from kdscale.experiment.run import Outcome
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


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
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
    submit.add_argument("--resume", action="store_true", help="resume a sweep")
    submit.add_argument("--detach", action="store_true", help="do not follow the job's log")
    submit.set_defaults(run=_submit)


def _config_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    add_set(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print what is cached and what would run"
    )


def _run(args: argparse.Namespace) -> int:
    from kdscale.experiment.load import load_config
    from kdscale.experiment.run import run_steps
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


def _wanted(config: Config, args: argparse.Namespace) -> list[StepId] | None:
    """The steps of a stage command; None for all of them."""
    from kdscale.experiment.steps import build_steps

    if args.stage is None:
        return None
    steps = [s for s in build_steps(config).values() if PART_OF.get(s.stage, s.stage) == args.stage]
    for option, choose in (
        ("student", lambda step: step.id.shape),
        ("strategy", lambda step: step.id.strategy.name),
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
    return [step.id for step in steps]


def _show_report(outcomes: list[Outcome], reporter: Reporter) -> None:
    """The table and where the page is, when they are among the outcomes."""
    from kdscale.experiment.context import EVALUATION, REPORT

    made = {o.step.id: o.made for o in outcomes}
    if EVALUATION in made:
        from kdscale.commands.store import print_table

        print_table(str(made[EVALUATION].path))
    if REPORT in made:
        reporter.info(f"page: {made[REPORT].path / 'index.html'}")


def _submit(args: argparse.Namespace) -> int:
    from kdscale.cluster.submit import Request, submit
    from kdscale.experiment.load import load_config, to_dict
    from kdscale.progress import Reporter

    if args.resume and args.stage != "sweep":
        raise KdscaleError(
            "--resume is of a sweep (--stage sweep); anything else resumes by itself"
        )
    if args.stage == "sweep":
        from kdscale.sweep.spec import load_sweep

        sweep = load_sweep(args.config, args.set)
        config, settings = sweep.base, sweep.document()
    else:
        config = load_config(args.config, args.set)
        settings = to_dict(config)
    request = Request(config, settings, args.stage, args.config, args.set, args.resume)
    return submit(args.address, request, args.detach, Reporter())
