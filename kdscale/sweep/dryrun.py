"""What a sweep would do: its trials, what they share, and how long that takes where it was
measured."""

from __future__ import annotations

from dataclasses import replace

from kdscale.experiment.context import DATASET, TOKENS
from kdscale.experiment.run import run_steps
from kdscale.progress import Reporter
from kdscale.sweep.board import describe, minutes
from kdscale.sweep.driver import limited, open_record
from kdscale.sweep.rates import (
    HOUR_S,
    check_hours,
    expected_seconds,
    rates_of_store,
    shared_seconds,
)
from kdscale.sweep.shared import (
    check_students,
    check_trials,
    make_shared,
    pairs_of_trials,
    shared_parts,
    train_queries,
    trial_configs,
)
from kdscale.sweep.space import SECTION
from kdscale.sweep.spec import Sweep

UNKNOWN = "unknown until the first trial has run"


def show_plan(sweep: Sweep, reporter: Reporter) -> None:
    """Print it; nothing is made. Raises KdscaleError for a budget too small for one trial."""
    record, trials = open_record(sweep), limited(sweep)
    store = record.store
    store.preflight(writing=False)
    base = replace(sweep.base, students=[])
    dataset = run_steps(base, store, [DATASET], reporter, dry_run=True)[0].artifact
    queries = None if dataset is None else train_queries(dataset)
    configs = trial_configs(sweep, trials, queries)
    if queries is not None:
        check_students({t.id: configs[t.id] for t in trials if not t.is_open})
    check_trials(configs.values(), download=False)
    shared = make_shared(shared_parts(sweep, list(configs.values())), store, reporter, dry_run=True)
    reporter.info(f"shared by {len(trials)} trials, each made once:")
    took: list[float | None] = []
    for config, outcome in shared:
        seconds = shared_seconds(outcome, config, store)
        took.append(seconds)
        summary = "" if outcome.artifact is not None else f"  {_how_long(seconds)}"
        reporter.info(f"  {outcome.status:10} {outcome.step.name}{summary}")
    expected: dict[str, float | None] = dict.fromkeys(configs)
    if queries is not None:
        tokens = next(o.artifact for _, o in shared if o.step.id == TOKENS)
        rates = rates_of_store(store, tokens.digest if tokens else None)
        sizes = pairs_of_trials(trials, configs, queries)
        expected = expected_seconds(rates, configs, sizes)
    check_hours(sweep, expected)
    ended = record.results(reporter)
    reporter.info("trials:")
    for trial in trials:
        if trial.id in ended:
            status, summary = ended[trial.id][0].status, ""
        else:
            status, summary = "would run", f"  {_how_long(expected[trial.id])}"
            took.append(expected[trial.id])
        reporter.info(f"  {status:10} {trial.id}  {describe(trial)}{summary}")
    left_out = len(sweep.trials) - len(trials)
    if left_out:
        reporter.info(f"  {left_out} more are left out by {SECTION}.limits.trials")
    _show_estimate(sweep, took, reporter)


def _how_long(seconds: float | None) -> str:
    return "not measured yet" if seconds is None else f"about {minutes(seconds)}"


def _show_estimate(sweep: Sweep, took: list[float | None], reporter: Reporter) -> None:
    """took: seconds of all that would run, None for what was not measured."""
    known = [seconds for seconds in took if seconds is not None]
    if not any(known) and took:
        reporter.info(f"time and cost: {UNKNOWN}")
        return
    missing = len(took) - len(known)
    rest = f", and {missing} not measured yet ({UNKNOWN})" if missing else ""
    total = sum(known)
    cluster = sweep.base.cluster
    gpus = cluster.gpus_per_worker * cluster.workers
    reporter.info(
        f"time, as measured in this store, one after another: about {minutes(total)}{rest}"
    )
    cost = (
        f"{total / HOUR_S * gpus:.2g} GPU hours"
        if gpus
        else f"{total / HOUR_S:.2g} hours of the cluster"
    )
    reporter.info(f"cost: about {cost}")
