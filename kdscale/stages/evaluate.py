"""Every system's rankings, what they are worth, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.config import Evaluate
from kdscale.data.dataset import Dataset, Tokens, check_split
from kdscale.data.queries import TRAIN
from kdscale.data.runs import read_run, run_tag, write_run
from kdscale.data.schema import DEPTHS, METRICS, QUERY_FEATURES, QUERY_TYPES
from kdscale.data.shards import write_table
from kdscale.data.splits import describe, leaked
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import (
    Collection,
    Scored,
    count_pairs,
    score_queries,
    scoring_device,
)
from kdscale.evaluation.depths import DepthRows
from kdscale.evaluation.ensemble import ensemble_costs, ensemble_run, ensemble_timings, read_scales
from kdscale.evaluation.latency import (
    Timings,
    count_parameters,
    forward_flops,
    hardware,
    measure_latency,
    weight_bytes,
)
from kdscale.evaluation.measures import check_grades, parse_measures, per_query
from kdscale.evaluation.query_types import query_features, query_types
from kdscale.evaluation.systems import ENSEMBLE, System, system_rows, systems_of
from kdscale.experiment.context import DATASET, TOKENS, StageContext, StepId
from kdscale.experiment.settings import EvaluateSettings
from kdscale.models.ranker import BATCH_TOKENS, Scorer, load_ranker
from kdscale.store import Artifact

# (name of the collection, measure) -> system -> [judged queries]
Values = dict[tuple[str, str], dict[str, np.ndarray]]


def run(ctx: StageContext[EvaluateSettings]) -> dict[str, Any]:
    """Runs, metrics, tests and latency of bm25, every teacher, their ensemble and every student;
    what they are worth at smaller depths, on the collections of `transfer`, and for which types of
    queries.

    Raises KdscaleError for an unknown measure, split or baseline before anything is scored.
    """
    settings = ctx.settings.evaluate
    dataset = Dataset(ctx.inputs[DATASET].path)
    tokens = {id_: Tokens(a.path) for id_, a in ctx.inputs.items() if id_.kind == "tokens"}
    systems = systems_of(ctx.inputs)
    _check(settings, systems, dataset)
    collections = _collections(ctx.settings, ctx.inputs, dataset, tokens)
    measures_of = {c.name: parse_measures(settings.measures_of(c.name)) for c in collections}
    for collection in collections:
        check_grades(measures_of[collection.name], collection.qrels)
    values: Values = {(name, m): {} for name, measures in measures_of.items() for m in measures}
    depths = DepthRows(settings.depths, settings.baseline)
    costs = {}
    for system in systems:
        scorer = None
        if system.is_model:
            own = tokens[_tokens_of(system)]
            scorer, costs[system.name] = _load(system, own, settings.batch_tokens)
        elif system.name == ENSEMBLE:
            costs[ENSEMBLE] = ensemble_costs([costs[s.name] for s in systems if s.is_teacher])
        for collection in collections:
            if scorer is not None:
                texts = tokens[_tokens_of(system, collection)]
                scored = score_queries(scorer, collection.token_pairs(texts))
            elif system.name == ENSEMBLE:
                runs = [_run_path(ctx, s, collection) for s in systems if s.is_teacher]
                scored = ensemble_run(runs, read_scales(system.artifact.path))
            else:
                scored = collection.found()
            path = _write_run(ctx, system, scored, collection)
            # Measured from the file: what is reported is what anyone can measure again.
            run_of = {qid: [pid for pid, _ in ranking] for qid, ranking in read_run(path)}
            measures = measures_of[collection.name]
            of_queries = per_query(measures, collection.qrels, run_of)
            for measure in measures:
                values[collection.name, measure][system.name] = of_queries[measure]
            depths.add(system.name, collection, measures, run_of, of_queries)
    write_table(ctx.out / "metrics.parquet", _metrics_table(values, collections), METRICS)
    write_table(ctx.out / "depths.parquet", depths.table(), DEPTHS)
    first = collections[0].name
    _query_types(ctx, dataset, collections[0], systems, values[first, settings.primary_of(first)])
    timings, circumstances = _latency(ctx, systems, tokens, collections[0])
    _write_json(ctx, "latency.json", circumstances)
    rows = system_rows(settings, systems, values, costs, timings, circumstances)
    _write_json(ctx, "systems.json", rows)
    return {
        "systems": len(systems),
        "queries": {c.name: len(c.qrels) for c in collections},
        "pairs": {c.name: c.pairs for c in collections},
        **_trained_on(ctx, dataset, collections),
        "primary": settings.primary,
        "means": {row["system"]: row["measures"] for row in rows},
    }


def _tokens_of(system: System, collection: Collection | None = None) -> StepId:
    """The input that has a collection's texts as the system reads them; None: the experiment's."""
    transfer = collection.transfer if collection else None
    return StepId("tokens", teacher=system.reads, collection=transfer)


def _collections(
    settings: EvaluateSettings,
    inputs: dict[StepId, Artifact],
    dataset: Dataset,
    tokens: dict[StepId, Tokens],
) -> list[Collection]:
    """The splits of the experiment, the primary one first, and then those of `transfer`."""
    own = [
        Collection(dataset, tokens[TOKENS], split, settings.evaluate.depth)
        for split in settings.evaluate.splits
    ]
    return own + [
        Collection(
            Dataset(inputs[StepId("dataset", collection=name)].path),
            tokens[StepId("tokens", collection=name)],
            transfer.split,
            transfer.depth,
            name,
        )
        for name, transfer in settings.transfers.items()
    ]


def _check(settings: Evaluate, systems: list[System], dataset: Dataset) -> None:
    if not settings.splits:
        raise KdscaleError(f"evaluate.splits is empty; name some of {', '.join(dataset.splits())}")
    for split in settings.splits:
        check_split(split, dataset.splits())
    names = [system.name for system in systems]
    if settings.baseline not in names:
        raise KdscaleError(
            f"evaluate.baseline: no system {settings.baseline!r}, only {', '.join(names)}"
        )


def _trained_on(
    ctx: StageContext[EvaluateSettings], dataset: Dataset, collections: list[Collection]
) -> dict[str, dict[str, int]]:
    """ "leaked": how many training queries each transfer has among its queries. (Those of the
    experiment's own splits are counted where it is prepared.)"""
    transfers = [c for c in collections if c.transfer]
    if not transfers or TRAIN not in dataset.splits():
        return {}
    others = {c.name: c.query_texts() for c in transfers}
    train = dict(zip(*dataset.queries(TRAIN).to_pydict().values(), strict=True))
    leaks = {name: len(qids) for name, qids in leaked(train, others).items()}
    if leaks:
        ctx.reporter.warn(f"{describe(leaks)}; a transfer is to be new to the students")
    return {"leaked": leaks}


def _load(
    system: System, tokens: Tokens, batch_tokens: int | None
) -> tuple[Scorer, dict[str, int]]:
    """The system's scorer, and what the system costs."""
    encoder, model = tokens.encoder(), load_ranker(system.artifact.path)
    parameters, embedding_parameters = count_parameters(model)
    costs = {
        "parameters": parameters,
        "embedding_parameters": embedding_parameters,
        "bytes": weight_bytes(system.artifact.path),
        "flops_per_pair": forward_flops(model, encoder.max_length),
    }
    return Scorer(model, encoder, batch_tokens, scoring_device()), costs


def _write_run(
    ctx: StageContext[EvaluateSettings],
    system: System,
    scored: Iterator[Scored],
    collection: Collection,
) -> Path:
    """Score the candidates of a collection and write the system's run."""
    path = _run_path(ctx, system, collection)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ctx.reporter.task(f"{system.name} on {collection.name}", collection.pairs) as task:
        write_run(path, count_pairs(scored, task), run_tag(system.name))
    return path


def _run_path(ctx: StageContext[EvaluateSettings], system: System, collection: Collection) -> Path:
    return ctx.out / "runs" / collection.name / f"{run_tag(system.name)}.trec"


def _metrics_table(values: Values, collections: list[Collection]) -> pa.Table:
    qids = {c.name: pa.array(c.qrels, pa.string()) for c in collections}
    tables = [
        pa.table(
            [
                pa.repeat(split, len(of_queries)),
                pa.repeat(system, len(of_queries)),
                qids[split],
                pa.repeat(measure, len(of_queries)),
                of_queries,
            ],
            schema=METRICS,
        )
        for (split, measure), of_systems in values.items()
        for system, of_queries in of_systems.items()
    ]
    return pa.concat_tables(tables)


def _query_types(
    ctx: StageContext[EvaluateSettings],
    dataset: Dataset,
    collection: Collection,
    systems: list[System],
    values: dict[str, np.ndarray],
) -> None:
    """Write which types of queries the students lose on; values: of the primary measure."""
    baseline = ctx.settings.evaluate.baseline
    with ctx.reporter.task("query types") as task:
        features = query_features(dataset, collection, ctx.settings.min_grade, task)
    write_table(ctx.out / "query_features.parquet", features, QUERY_FEATURES)
    compared = {s.name: values[s.name] for s in systems if s.student or s.name == baseline}
    types = query_types(features, compared, baseline, collection.depth)
    write_table(ctx.out / "query_types.parquet", types, QUERY_TYPES)


def _latency(
    ctx: StageContext[EvaluateSettings],
    systems: list[System],
    tokens: dict[StepId, Tokens],
    collection: Collection,
) -> tuple[dict[str, Timings], dict[str, Any]]:
    """Each ranker's timings, and latency.json: these and how they were taken."""
    settings = ctx.settings.evaluate
    requests = collection.requests(settings.latency_queries)
    rankers = {
        s.name: (load_ranker(s.artifact.path), tokens[_tokens_of(s)].encoder())
        for s in systems
        if s.is_model
    }
    with ctx.reporter.task("latency", len(requests) * len(rankers)) as task:
        timings = measure_latency(rankers, requests, settings.latency_threads, task)
    if any(s.name == ENSEMBLE for s in systems):
        timings[ENSEMBLE] = ensemble_timings([timings[s.name] for s in systems if s.is_teacher])
    return timings, {
        "hardware": hardware(),
        "threads": settings.latency_threads,
        "split": collection.split,
        "queries": len(requests),
        "candidates": len(requests[0][1]),
        "max_length": tokens[TOKENS].info["max_length"],
        "batch_tokens": BATCH_TOKENS["cpu"],
        "systems": {
            name: {
                part: [round(v, 3) for v in ms.tolist()] for part, ms in of_system.parts().items()
            }
            for name, of_system in timings.items()
        },
    }


def _write_json(ctx: StageContext[EvaluateSettings], name: str, value: Any) -> None:
    (ctx.out / name).write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
