"""Every system's rankings, what they are worth, and what they cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.config import Evaluate
from kdscale.data.dataset import Dataset, Tokens, check_split
from kdscale.data.runs import read_run, write_run
from kdscale.data.schema import METRICS
from kdscale.data.shards import write_table
from kdscale.errors import KdscaleError
from kdscale.evaluation.collection import Collection
from kdscale.evaluation.flops import count_parameters, forward_flops, weight_bytes
from kdscale.evaluation.latency import (
    BATCH_TOKENS,
    Timings,
    hardware,
    measure_latency,
    speedup,
)
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.evaluation.ranking import count_pairs, score_queries, scoring_device
from kdscale.evaluation.significance import compare_all
from kdscale.models.ranker import Scorer, load_ranker
from kdscale.stages.context import StageContext
from kdscale.store import Artifact

BM25, TEACHER = "bm25", "teacher"


@dataclass(frozen=True)
class System:
    """Something that ranks. The artifact of bm25 is the dataset, which has its candidates."""

    name: str
    artifact: Artifact
    strategy: str | None = None
    student: str | None = None

    @property
    def tag(self) -> str:
        """The name as it stands in run files and file names."""
        return self.name.replace("/", "--")


def run(ctx: StageContext) -> dict[str, Any]:
    """Runs, metrics, tests and latency of bm25, the teacher and every student.

    Raises KdscaleError for an unknown measure, split or baseline before anything is scored.
    """
    settings = ctx.config.evaluate
    measures = parse_measures(list(dict.fromkeys([settings.primary, *settings.measures])))
    dataset, tokens = Dataset(ctx.inputs["dataset"].path), Tokens(ctx.inputs["tokens"].path)
    systems = _systems(ctx.inputs)
    _check(settings, systems, dataset)
    collections = [Collection(dataset, split, settings.depth) for split in settings.splits]
    # (split, measure) -> system -> [judged queries]
    values = {(c.split, m): {} for c in collections for m in measures}
    costs = {}
    for system in systems:
        scorer = None
        if system.name != BM25:
            scorer, costs[system.name] = _load(system, tokens, settings.batch_tokens)
        for collection in collections:
            path = _write_run(ctx, system, scorer, collection, tokens)
            # Measured from the file: what is reported is what anyone can measure again.
            run_of = {qid: [pid for pid, _ in ranking] for qid, ranking in read_run(path)}
            for measure, of_queries in per_query(measures, collection.qrels, run_of).items():
                values[collection.split, measure][system.name] = of_queries
    write_table(ctx.out / "metrics.parquet", _metrics_table(values, collections), METRICS)
    timings, circumstances = _latency(ctx, systems, tokens, collections[0])
    _write_json(ctx, "latency.json", circumstances)
    rows = _system_rows(settings, systems, values, costs, timings, circumstances)
    _write_json(ctx, "systems.json", rows)
    return {
        "systems": len(systems),
        "queries": {c.split: len(c.qrels) for c in collections},
        "pairs": {c.split: c.pairs for c in collections},
        "primary": settings.primary,
        "means": {row["system"]: row["measures"] for row in rows},
    }


def _systems(inputs: dict[str, Artifact]) -> list[System]:
    systems = [System(BM25, inputs["dataset"]), System(TEACHER, inputs["teacher"])]
    for role, artifact in inputs.items():
        if role.startswith("student:"):
            _, strategy, student = role.split(":", 2)
            systems.append(System(f"{strategy}/{student}", artifact, strategy, student))
    return systems


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
    for name in ("depth", "latency_queries", "latency_threads"):
        if getattr(settings, name) < 1:
            raise KdscaleError(f"evaluate.{name} must be at least 1")


def _load(system: System, tokens: Tokens, batch_tokens: int) -> tuple[Scorer, dict[str, int]]:
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
    ctx: StageContext,
    system: System,
    scorer: Scorer | None,
    collection: Collection,
    tokens: Tokens,
) -> Path:
    """Score the candidates of a split and write the system's run."""
    split = collection.split
    path = ctx.out / "runs" / split / f"{system.tag}.trec"
    path.parent.mkdir(parents=True, exist_ok=True)
    if scorer is None:
        scored = collection.found()
    else:
        scored = score_queries(scorer, collection.token_pairs(tokens))
    with ctx.reporter.task(f"{system.name} on {split}", collection.pairs) as task:
        write_run(path, count_pairs(scored, task), system.tag)
    return path


def _metrics_table(
    values: dict[tuple[str, str], dict[str, np.ndarray]], collections: list[Collection]
) -> pa.Table:
    qids = {c.split: pa.array(c.qrels, pa.string()) for c in collections}
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


def _latency(
    ctx: StageContext,
    systems: list[System],
    tokens: Tokens,
    collection: Collection,
) -> tuple[dict[str, Timings], dict[str, Any]]:
    """Each ranker's timings, and latency.json: these and how they were taken."""
    settings = ctx.config.evaluate
    requests = collection.requests(settings.latency_queries)
    rankers = {s.name: (load_ranker(s.artifact.path), tokens.encoder()) for s in systems[1:]}
    with ctx.reporter.task("latency", len(requests) * len(rankers)) as task:
        timings = measure_latency(rankers, requests, settings.latency_threads, task)
    return timings, {
        "hardware": hardware(),
        "threads": settings.latency_threads,
        "split": collection.split,
        "queries": len(requests),
        "candidates": len(requests[0][1]),
        "max_length": tokens.info["max_length"],
        "batch_tokens": BATCH_TOKENS,
        "systems": {
            name: {
                part: [round(v, 3) for v in ms.tolist()] for part, ms in of_system.parts().items()
            }
            for name, of_system in timings.items()
        },
    }


def _system_rows(
    settings: Evaluate,
    systems: list[System],
    values: dict[tuple[str, str], dict[str, np.ndarray]],
    costs: dict[str, dict[str, int]],
    timings: dict[str, Timings],
    circumstances: dict[str, Any],
) -> list[dict[str, Any]]:
    """The entries of systems.json."""
    tests = {
        (split, measure): compare_all(
            of_systems,
            settings.baseline,
            settings.alpha,
            settings.margin if measure == settings.primary else None,
        )
        for (split, measure), of_systems in values.items()
    }
    no_costs = dict.fromkeys(costs[TEACHER])
    rows = []
    for system in systems:
        row: dict[str, Any] = {
            "system": system.name,
            "strategy": system.strategy,
            "student": system.student,
            **costs.get(system.name, no_costs),
            "measures": {split: {} for split in settings.splits},
            "tests": {split: {} for split in settings.splits},
            "latency": None,
            "speedup": None,
            "speedup_forward": None,
            "artifact": system.artifact.name,
            "digest": system.artifact.digest,
        }
        for (split, measure), of_systems in values.items():
            row["measures"][split][measure] = float(of_systems[system.name].mean())
            if system.name != settings.baseline:
                row["tests"][split][measure] = tests[split, measure][system.name]
        if system.name in timings:
            mine, teacher = timings[system.name], timings[TEACHER]
            shared = {k: circumstances[k] for k in ("candidates", "threads", "queries")}
            row["latency"] = {**shared, **mine.summary()}
            row["speedup"] = speedup(teacher.total_ms, mine.total_ms)
            row["speedup_forward"] = speedup(teacher.forward_ms, mine.forward_ms)
        rows.append(row)
    return rows


def _write_json(ctx: StageContext, name: str, value: Any) -> None:
    (ctx.out / name).write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
