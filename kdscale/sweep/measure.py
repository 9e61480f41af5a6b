"""What a trial's student is worth on dev, and what its shape costs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.config import Config, Shape
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.queries import DEV
from kdscale.evaluation.collection import Collection, score_queries, scoring_device
from kdscale.evaluation.latency import (
    count_parameters,
    forward_flops,
    hardware,
    measure_latency,
    speedup,
    weight_bytes,
)
from kdscale.evaluation.measures import parse_measures
from kdscale.evaluation.trials import trial_rows
from kdscale.models.pretrained import load_encoder
from kdscale.models.ranker import Scorer, build_ranker, load_ranker
from kdscale.models.students import build_student
from kdscale.progress import Reporter
from kdscale.store import Artifact, locate

Values = dict[str, np.ndarray]  # measure -> [queries]
Ref = dict[str, str]  # of an artifact (`Artifact.ref`)
_TEACHER = "/teacher"  # which no shape can be called


def measures_of(config: Config, metric: str) -> list[str]:
    """The metric first."""
    return list(dict.fromkeys([metric, *config.evaluate.measures_of(DEV)]))


def measure(
    model: Ref | None, dataset: Ref, tokens: Ref, config: Config, measures: list[str]
) -> Values:
    """The quality on dev of a ranker; None: of the candidates as they come (BM25).

    May run on any node: what it reads are artifacts, which stay loaded in a process that is used
    again.
    """
    collection, read = _loaded(_hashable(dataset), _hashable(tokens), config.evaluate.depth)
    if model is None:
        scored = collection.found()
    else:
        scorer = Scorer(
            load_ranker(locate(model)),
            read.encoder(),
            config.evaluate.batch_tokens,
            scoring_device(),
        )
        scored = score_queries(scorer, collection.token_pairs())
    return collection.values(parse_measures(measures), scored)


def measure_base(
    dataset: Artifact,
    tokens: Artifact,
    teacher: Artifact,
    config: Config,
    measures: list[str],
    reporter: Reporter,
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of BM25 and of the teacher, and what is told of all systems: what each shape costs.

    Latency does not depend on the weights, so each shape is timed once, on random ones, while
    nothing else runs: trials side by side could not disturb it.
    """
    refs = dataset.ref(), tokens.ref()
    collection, read = _loaded(*map(_hashable, refs), config.evaluate.depth)
    reporter.info("BM25 and the teacher on dev, and the latency of each shape")
    of_teacher, costs, circumstances = _costs(teacher.path, config, collection, read, reporter)
    rows = [
        trial_rows(measure(None, *refs, config, measures), system="bm25"),
        trial_rows(
            measure(teacher.ref(), *refs, config, measures),
            system="teacher",
            artifact=teacher.name,
            digest=teacher.digest,
            bytes=weight_bytes(teacher.path),
            pairs_seen=teacher.facts.get("pairs_seen"),
            train_seconds=teacher.facts.get("seconds"),
            **columns_of(of_teacher),
        ),
    ]
    summary = {
        "split": DEV,
        "depth": config.evaluate.depth,
        "queries": len(collection.qrels),
        "costs": costs,  # of each shape
        "teacher_cost": of_teacher,
        "latency": circumstances,
        "dataset": dataset.digest,
        "teacher": teacher.digest,
    }
    return pa.concat_tables(rows), summary


def columns_of(cost: dict[str, Any]) -> dict[str, Any]:
    """What of a shape's costs the table of trials has."""
    return {name: cost[name] for name in ("parameters", "ms", "speedup")}


def _costs(
    teacher: Path, config: Config, collection: Collection, tokens: Tokens, reporter: Reporter
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """Of the teacher, of each shape by its name, and how they were timed."""
    encoder, evaluate = tokens.encoder(), config.evaluate
    like = load_encoder(config.teacher.model, config.teacher.revision)
    models = {_TEACHER: load_ranker(teacher)}
    models |= {shape.name: _random_ranker(shape, like) for shape in config.students}
    requests = collection.requests(evaluate.latency_queries)
    threads = evaluate.latency_threads
    with reporter.task("latency", len(requests) * len(models)) as task:
        timings = measure_latency(
            {name: (model, encoder) for name, model in models.items()}, requests, threads, task
        )
    slow = timings[_TEACHER].total_ms
    costs = {
        name: {
            "parameters": count_parameters(model)[0],
            "flops_per_pair": forward_flops(model, encoder.max_length),
            "ms": float(np.median(timings[name].total_ms)),
            "speedup": speedup(slow, timings[name].total_ms),
        }
        for name, model in models.items()
    }
    return (
        costs.pop(_TEACHER),
        costs,
        {
            "queries": len(requests),
            "candidates": len(requests[0][1]),
            "threads": threads,
            "hardware": hardware(),
        },
    )


def _random_ranker(shape: Shape, like: Any) -> Any:
    return build_ranker(build_student(shape, like, "random", 0), 0.0, 0)


def _hashable(ref: Ref) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(ref.items()))


@functools.lru_cache(maxsize=1)
def _loaded(dataset: tuple, tokens: tuple, depth: int) -> tuple[Collection, Tokens]:
    read = Tokens(locate(dict(tokens)))
    return Collection(Dataset(locate(dict(dataset))), read, DEV, depth), read
