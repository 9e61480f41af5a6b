"""`kdscale sweep`: from a sweep file to a table of trials, whatever stops it on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.pipeline import Outcome
from kdscale.progress import Reporter
from kdscale.runtime import cluster_nodes, ray_session
from kdscale.store import Artifact, open_store
from kdscale.sweep.board import Board
from kdscale.sweep.rates import check_hours, expected_seconds, rates_of_store
from kdscale.sweep.record import Record, Result, changes, is_alive, sweep_key, unfinished_others
from kdscale.sweep.resources import plan_trials
from kdscale.sweep.session import Session
from kdscale.sweep.shared import (
    Once,
    check_students,
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

AGAIN = "kdscale sweep CONFIG --resume"


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
    if record.artifact() is not None:
        reporter.info(f"nothing to do: the sweep has ended ({record.uri})")
        return record
    begun = _begun(sweep, record, identity, resume, reporter)
    trials = limited(sweep)
    reporter.info(f"{sweep.base.name}: {len(trials)} trials, in {record.uri}")
    with ray_session(sweep.base.cluster, reporter) as ray:
        side_by_side, cpus, node = _fit(sweep, ray, len(trials))
        once = Once(reporter)
        dataset = make_dataset(sweep, store, once)
        queries = train_queries(dataset)
        configs = trial_configs(sweep, trials, queries)
        check_students(configs)
        parts = shared_parts(sweep, list(configs.values()))
        outcomes = [outcome for _, outcome in make_shared(parts, store, once)]
        shared = {o.step.name: o.artifact for o in outcomes}
        sizes = pairs_of_trials(trials, configs, queries)
        if not record.results(reporter):
            rates = rates_of_store(store, shared["tokens"].digest)
            check_hours(sweep, expected_seconds(rates, configs, sizes))
        rows, told = _base(sweep, record, shared, reporter)
        told |= _told(sweep, record, begun, outcomes, queries)
        before = record.results(reporter)
        board = Board(
            _settled(trials, record), {k: r for k, (r, _) in before.items()}, sizes, sweep.metric
        )
        board.side_by_side = side_by_side
        events = store.disk / ".tensorboard" / record.key
        session = Session(
            sweep,
            record,
            board,
            {"": rows, **{k: r for k, (_, r) in before.items() if r is not None}},
            told,
            (record.state() or {}).get("spent_s", 0.0),
            events,
            reporter,
        )
        if before:
            reporter.info(f"  {len(before)} trials have ended before and are kept")
        if board.waiting:
            reporter.info(f"  at most {side_by_side} trials at once, {cpus:g} CPUs a worker")
            reporter.info(f"  curves: tensorboard --logdir {events}")
            _tune(sweep, record, session, board, told, shared, side_by_side, cpus, node)
    return _finish(sweep, record, identity, session, board, shared, reporter)


def _begun(
    sweep: Sweep, record: Record, identity: dict[str, Any], resume: bool, reporter: Reporter
) -> dict[str, Any]:
    """What was written when the sweep began. Raises KdscaleError where --resume is missing or
    wrong, or another process is at it."""
    begun = record.begun()
    others = unfinished_others(record.store, sweep.base.name, record.key)
    if begun is None and resume:
        if not others:
            raise KdscaleError(
                f"--resume: no sweep {sweep.base.name} of this file was begun in "
                f"{record.store.uri}; run it without --resume"
            )
        was = others[-1].begun()["identity"]
        told = changes(was, identity)
        more = f", and {len(told) - 3} more" if len(told) > 3 else ""
        raise KdscaleError(
            f"--resume: the sweep file has changed since {others[-1].key} was begun: "
            f"{'; '.join(told[:3])}{more}; put that back to go on, or run without --resume for a "
            "new sweep (students and language models that it shares are not made again)"
        )
    # Until something was measured there is nothing that a new start could lose.
    if begun is not None and not resume and record.base() is not None:
        raise KdscaleError(
            f"{record.uri} was begun and has not ended; add --resume to go on with it"
        )
    if begun is None:
        for other in others:
            reporter.info(f"unfinished, of an earlier version of this file: {other.uri}")
        record.begin(identity)
        return record.begun()
    if is_alive((record.state() or {}).get("process")):
        raise KdscaleError(
            f"process {record.state()['process']['pid']} is running this sweep; wait for it, or "
            "stop it first"
        )
    return begun


def _fit(sweep: Sweep, ray: Any, trials: int) -> tuple[int, float, str]:
    """(trials side by side, CPUs of a worker, the resource that stands for the driver's node)."""
    from kdscale.placement import Plan
    from kdscale.runtime import check_fits

    cluster = sweep.base.cluster
    most = min(trials, sweep.search.concurrent or trials)
    if cluster.wait_s and cluster.engine == "deepspeed":
        # An autoscaler starts nodes for what it is asked for: for as many trials as were named.
        many = min(trials, sweep.search.concurrent or 1) * cluster.workers
        plan = Plan(many, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.worker_labels)
        check_fits("the sweep", plan, "sweep.search.concurrent or cluster.workers", cluster.wait_s)
    here = ray.get_runtime_context().get_node_id()
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == here)
    node = next(k for k in resources if k.startswith("node:") and not k.endswith("__"))
    nodes = cluster_nodes()
    if cluster.engine == "torch":  # in the trial itself, which is on the driver's node
        from kdscale.placement import Node

        nodes = [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))]
    return *plan_trials(cluster, nodes, most), node


def _base(
    sweep: Sweep, record: Record, shared: dict[str, Artifact], reporter: Reporter
) -> tuple[Any, dict[str, Any]]:
    """BM25, the teacher, and what shapes cost: measured once a sweep."""
    from kdscale.sweep.measure import measure_base, measures_of

    if record.base() is None:
        rows, told = measure_base(
            shared["dataset"],
            shared["tokens"],
            shared["teacher"],
            sweep.base,
            measures_of(sweep.base, sweep.metric),
            reporter,
        )
        record.put_base(rows, told)
    rows, told = record.base()
    for name in ("dataset", "teacher"):
        if told[name] != shared[name].digest:
            raise KdscaleError(
                f"the {name} has changed since the sweep began: what its trials were measured "
                "with is not there any more; put it back, or give the sweep another name"
            )
    return rows, told


def _told(
    sweep: Sweep,
    record: Record,
    begun: dict[str, Any],
    outcomes: list[Outcome],
    queries: int,
) -> dict[str, Any]:
    return {
        "sweep": record.key,
        "name": sweep.base.name,
        "created": begun["created"],
        "metric": sweep.metric,
        "train_queries": queries,
        "shared": counts(outcomes, begun["created"]),
    }


def _settled(trials: list[Trial], record: Record) -> list[Trial]:
    """The trials, with the settings that a session before this one had chosen for those that it
    did not see end."""
    chosen = {told["id"]: told["settings"] for told in (record.state() or {}).get("trials", [])}
    return [replace(t, settings=chosen.get(t.id, t.settings)) for t in trials]


def _tune(
    sweep: Sweep,
    record: Record,
    session: Session,
    board: Board,
    told: dict[str, Any],
    shared: dict[str, Artifact],
    side_by_side: int,
    cpus: float,
    node: str,
) -> None:
    from kdscale.sweep.measure import measures_of
    from kdscale.sweep.trial import Work
    from kdscale.sweep.tuning import run_trials

    base = sweep.base
    cluster = replace(base.cluster, cpus_per_worker=cpus)
    storage = replace(base.storage, uri=record.store.uri)
    work = Work(
        replace(sweep, base=replace(base, cluster=cluster, storage=storage)),
        record.store.uri,
        record.key,
        told["train_queries"],
        measures_of(base, sweep.metric),
        told["costs"],
        shared["dataset"].ref(),
        shared["tokens"].ref(),
    )
    session.write()
    with session.view:
        run_trials(
            work, board.waiting, side_by_side, sweep.search, sweep.section.wandb, session, node
        )


def _finish(
    sweep: Sweep,
    record: Record,
    identity: dict[str, Any],
    session: Session,
    board: Board,
    shared: dict[str, Artifact],
    reporter: Reporter,
) -> Record:
    """Commit the artifact. Raises KdscaleError where trials failed for the first time, or none
    could start."""
    session.write()
    if not board.results:
        raise KdscaleError(
            f"no trial could start ({session.left_out}): the budget is too small for one trial "
            "after what all of them share was made; raise it and run again"
        )
    again = [r for r in board.results.values() if r.status == "failed" and not _kept(record, r)]
    if again:
        raise KdscaleError(
            f"{len(again)} of {len(board.trials)} trials failed (first {again[0].id}: "
            f"{again[0].reason}); {AGAIN} tries them once more, the others are kept"
        )
    inputs = {name: _input(shared[name].name, shared[name].digest) for name in _named(shared)}
    for result in board.results.values():
        if result.student is not None:
            inputs[f"trial:{result.id}"] = result.student
    told = session.told()
    facts = {"counts": told["counts"], "shared": told["shared"], "spent_s": told["spent_s"]}
    record.commit(identity, inputs, session.tables(), told, facts)
    reporter.info(f"written to {record.uri}")
    return record


def _kept(record: Record, result: Result) -> bool:
    return record.result(result.id) is not None


def _named(shared: dict[str, Artifact]) -> list[str]:
    return [name for name in shared if not name.startswith("lm:")]


def _input(name: str, digest: str) -> dict[str, str]:
    return {"name": name, "digest": digest}
