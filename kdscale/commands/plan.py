"""`kdscale plan`: what a config will take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.commands import add_set

if TYPE_CHECKING:
    from kdscale.config import Config
    from kdscale.experiment.context import StepId
    from kdscale.planning.rates import Rates
    from kdscale.progress import Reporter
    from kdscale.store import Artifact


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    plan = commands.add_parser(
        "plan",
        help="what a config will take: time, cost, storage, the slowest stage",
        description="Predict the time, cost and storage of every stage from a cost model, on this "
        "machine (once --calibrate has measured it) or on GPUs of a table.",
    )
    plan.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a YAML file")
    add_set(plan)
    plan.add_argument("--gpus", type=int, default=0, metavar="N", help="default 0: this machine")
    plan.add_argument("--gpu", default="a100", metavar="NAME", help="a100, h100, l4, t4, ...")
    plan.add_argument(
        "--cpus", type=int, metavar="N", help="cores, all told (default: here, or 8 a GPU)"
    )
    plan.add_argument(
        "--price-per-hour", type=float, metavar="X", help="of one GPU, or of the machine"
    )
    plan.add_argument("--passages", type=int, metavar="N", help="where nothing tells how many")
    plan.add_argument("--queries", type=int, metavar="N", help="of training, likewise")
    plan.add_argument(
        "--scale", action="store_true", help="and where each stage stops scaling, in figures"
    )
    plan.add_argument(
        "--calibrate", action="store_true", help="measure this machine first (minutes)"
    )
    plan.add_argument("--format", choices=("text", "json"), default="text")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from kdscale.bounds import Amount, Count, Natural, check_options
    from kdscale.errors import KdscaleError
    from kdscale.progress import Reporter

    check_options(
        args, gpus=Natural, cpus=Count, passages=Count, queries=Count, price_per_hour=Amount
    )
    if args.config is None and not args.calibrate:
        raise KdscaleError("give a CONFIG to plan, or --calibrate to measure this machine")
    from rich.console import Console

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    if args.calibrate:
        from kdscale.planning.calibrate import calibrate
        from kdscale.planning.rates import save_calibration

        path = save_calibration(calibrate(reporter))
        reporter.info(f"this machine's rates are kept in {path}")
    return 0 if args.config is None else _predict(args, reporter)


def _predict(args: argparse.Namespace, reporter: Reporter) -> int:
    from kdscale.cluster.machine import cpus
    from kdscale.experiment.load import load_config
    from kdscale.planning import text
    from kdscale.planning.counts import counts_of
    from kdscale.planning.model import CostModel, Machines
    from kdscale.planning.rates import ASSUMED, gpu_rates, load_calibration

    config = load_config(args.config, args.set)
    host = load_calibration() or ASSUMED
    if args.gpus:
        device = gpu_rates(args.gpu, config.ranker.train.precision, host)
        machines = Machines(
            device, args.gpus, host, 8 * args.gpus if args.cpus is None else args.cpus
        )
    else:
        cores = cpus() if args.cpus is None else args.cpus
        machines = Machines(_of_cores(host, cores), 1, host, cores)
    found, cached = _in_store(config, reporter)
    counts = counts_of(config, found, args.passages, args.queries)
    model = CostModel(config, counts, machines)
    stages = model.stages(cached)
    plan = text.Plan(config, counts, machines, model, stages, args.price_per_hour)
    if args.format == "json":
        import json

        print(json.dumps(text.as_json(plan), indent=1))
        return 0
    text.show(plan)
    if args.scale:
        from kdscale.planning.scale import scale_lines

        text.say(scale_lines(config, counts, machines))
    return 0


def _of_cores(host: Rates, cores: int) -> Rates:
    """A machine of another number of cores, each as fast as one of this one's."""
    from dataclasses import replace

    from kdscale.planning.rates import Compute

    times = cores / host.cores
    if times == 1:
        return host

    def grown(rate: Compute) -> Compute:
        return Compute(rate.flops * times, rate.elements * times)

    return replace(
        host,
        cores=cores,
        measured=False,
        parameters=host.parameters * times,
        forward=grown(host.forward),
        training=grown(host.training),
    )


def _in_store(
    config: Config, reporter: Reporter
) -> tuple[dict[StepId, Artifact], frozenset[StepId]]:
    """The dataset and tokens that are there, and all steps that are; nothing where
    the store or the source cannot be looked at, which is told."""
    from kdscale.errors import KdscaleError
    from kdscale.experiment.run import run_steps
    from kdscale.store import LocalStore, open_store

    try:
        store = open_store(config.storage.uri)
        if isinstance(store, LocalStore) and not store.root.is_dir():
            return {}, frozenset()
        store.preflight(writing=False)
        outcomes = run_steps(config, store, None, reporter, dry_run=True)
    except KdscaleError as error:
        reporter.warn(f"the store was not looked at: {error}")
        return {}, frozenset()
    there = {o.step.id: o.made for o in outcomes if o.status == "cached"}
    return there, frozenset(there)
