"""`kdscale sweep`: from a sweep file to a table of trials, whatever stops it on the way."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from kdscale.cluster.session import ray_session
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, TEACHER, TOKENS, StepId
from kdscale.progress import Reporter
from kdscale.store import Artifact, open_store
from kdscale.sweep.board import Board
from kdscale.sweep.placement import Room, find_room
from kdscale.sweep.rates import check_hours, expected_seconds, rates_of_store
from kdscale.sweep.record import PAGE, Record, begin, sweep_key
from kdscale.sweep.session import Session
from kdscale.sweep.shared import (
    Once,
    check_students,
    check_trials,
    counts,
    make_dataset,
    make_shared,
    pairs_of_trials,
    shared_parts,
    train_queries,
    trial_configs,
)
from kdscale.sweep.space import Trial
from kdscale.sweep.spec import Sweep


def open_record(sweep: Sweep) -> Record:
    return Record(open_store(sweep.base.storage.uri), sweep_key(sweep.base.name, sweep.identity()))


def limited(sweep: Sweep) -> list[Trial]:
    """The trials that limits.trials leaves."""
    return sweep.trials[: sweep.section.limits.trials]


def run_sweep(sweep: Sweep, resume: bool, reporter: Reporter) -> Record:
    """Run what is left of a sweep; its record, with the artifact of its results.

    Raises KdscaleError for a sweep that is unfinished and not resumed, or the other way round, for
    one that does not fit the cluster, and, when all others have ended, where a trial failed.
    """
    record, identity = open_record(sweep), sweep.identity()
    store = record.store
    store.preflight()
    command_began = time.monotonic()
    if record.artifact() is not None:
        reporter.info(f"nothing to do: the sweep has ended ({record.uri})")
        return record
    begun = begin(sweep, record, identity, resume, reporter)
    trials = limited(sweep)
    reporter.info(f"{sweep.base.name}: {len(trials)} trials, in {record.uri}")
    # By the State API Ray Train learns that a trial is gone, whose workers' place it then frees.
    with ray_session(sweep.base.cluster, reporter, state_api=True) as ray:
        room = find_room(sweep.base.cluster, ray, len(trials), sweep.search.concurrent)
        once = Once(reporter)
        dataset = make_dataset(sweep, store, once)
        queries = train_queries(dataset)
        configs = trial_configs(sweep, trials, queries)
        check_students({t.id: configs[t.id] for t in trials if not t.is_open})
        check_trials(configs.values())
        parts = shared_parts(sweep, list(configs.values()))
        outcomes = [outcome for _, outcome in make_shared(parts, store, once)]
        shared = {o.step.id: o.made for o in outcomes if o.step.id.kind != "lm"}
        sizes = pairs_of_trials(trials, configs, queries)
        before = record.results(reporter)
        if not before:
            rates = rates_of_store(store, shared[TOKENS].digest)
            check_hours(sweep, expected_seconds(rates, configs, sizes))
        rows, summary = _base(sweep, record, shared, reporter)
        summary |= {
            "sweep": record.key,
            "name": sweep.base.name,
            "created": begun["created"],
            "metric": sweep.metric,
            "train_queries": queries,
            "shared": counts(outcomes, begun["created"]),
        }
        state = record.state() or {}
        ended = {trial: result for trial, (result, _) in before.items()}
        board = Board(_settled(trials, state), ended, sizes, sweep.metric, room.trials)
        tables = {"": rows, **{k: r for k, (_, r) in before.items() if r is not None}}
        began = command_began - state.get("spent_s", 0.0)
        session = Session(sweep, record, board, tables, summary, began, reporter)
        if before:
            reporter.info(f"  {len(before)} trials have ended before and are kept")
        if board.waiting:
            _run_waiting(sweep, session, shared, room, reporter)
    return _finish(session, identity, shared, reporter)


def _base(
    sweep: Sweep, record: Record, shared: dict[StepId, Artifact], reporter: Reporter
) -> tuple[Any, dict[str, Any]]:
    """BM25, the teacher, and what shapes cost: measured once a sweep."""
    from kdscale.sweep.measure import measure_base, measures_of

    base = record.base()
    if base is None:
        base = measure_base(
            shared[DATASET],
            shared[TOKENS],
            shared[TEACHER],
            sweep.base,
            measures_of(sweep.base, sweep.metric),
            reporter,
        )
        record.put_base(*base)
    rows, summary = base
    for id_ in (DATASET, TEACHER):
        if summary[id_.kind] != shared[id_].digest:
            raise KdscaleError(
                f"the {id_} has changed since the sweep began: what its trials were measured "
                "with is not there any more; put it back, or give the sweep another name"
            )
    return rows, summary


def _settled(trials: list[Trial], state: dict[str, Any]) -> list[Trial]:
    """The trials, with the settings that a session before this one had chosen for those that it
    did not see end."""
    chosen = {trial["id"]: trial["settings"] for trial in state.get("trials", [])}
    return [replace(trial, settings=chosen.get(trial.id, trial.settings)) for trial in trials]


def _run_waiting(
    sweep: Sweep, session: Session, shared: dict[StepId, Artifact], room: Room, reporter: Reporter
) -> None:
    from kdscale.sweep.measure import measures_of
    from kdscale.sweep.trial import Work
    from kdscale.sweep.tuning import run_trials

    base, record = sweep.base, session.record
    reporter.info(f"  at most {room.trials} trials at once, {room.cpus:g} CPUs a worker")
    reporter.info(f"  curves: tensorboard --logdir {session.events}")
    cluster = replace(base.cluster, cpus_per_worker=room.cpus)
    # A relative folder is meant from where the command was given.
    storage = replace(base.storage, uri=record.store.uri)
    work = Work(
        replace(sweep, base=replace(base, cluster=cluster, storage=storage)),
        record.store.uri,
        record.key,
        session.summary["train_queries"],
        measures_of(base, sweep.metric),
        session.summary["costs"],
        shared[DATASET].ref(),
        shared[TOKENS].ref(),
        os.getcwd(),
    )
    session.write()
    with session.view:
        run_trials(work, session.board.waiting, room, session)


def _finish(
    session: Session, identity: dict[str, Any], shared: dict[StepId, Artifact], reporter: Reporter
) -> Record:
    """Commit the artifact. Raises KdscaleError where trials failed for the first time, or none
    could start."""
    record, board = session.record, session.board
    session.write()
    if not board.results:
        raise KdscaleError(
            f"no trial could start, {session.left_out}: what all of them share took that long; "
            "raise the limit and run again"
        )
    failed = [r for r in board.results.values() if r.status == "failed"]
    again = [r for r in failed if record.result(r.id) is None]
    if again:
        raise KdscaleError(
            f"{len(again)} of {len(board.trials)} trials failed (first {again[0].id}: "
            f"{again[0].reason}); --resume tries them once more, the others are kept"
        )
    inputs = {str(role): {"name": a.name, "digest": a.digest} for role, a in shared.items()}
    for result in board.results.values():
        if result.student is not None:
            inputs[f"trial:{result.id}"] = result.student
    state = session.state()
    facts = {name: state[name] for name in ("counts", "shared", "spent_s")}
    artifact = record.commit(identity, inputs, session.tables(), state, facts)
    reporter.info(f"written to {record.uri}")
    reporter.info(f"page: {artifact.path / PAGE}")
    return record
