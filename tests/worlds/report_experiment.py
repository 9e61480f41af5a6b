"""An experiment to report on: real artifacts in a local store, their numbers drawn from a seed.

Ten systems (BM25, a teacher, two student shapes under four strategies), 80 test queries. The
rankings are simulated, what follows from them (measures, tests) is computed as `evaluate` does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdscale.config import STRATEGIES, BeirSource, Config, Report, Shape, Storage
from kdscale.data.runs import run_tag, write_run
from kdscale.data.schema import DEPTHS, METRICS, QUERY_FEATURES, QUERY_TYPES
from kdscale.data.shards import write_table
from kdscale.evaluation.depths import DepthRows
from kdscale.evaluation.measures import parse_measures, per_query
from kdscale.evaluation.query_types import query_types
from kdscale.evaluation.significance import compare_all
from kdscale.experiment.context import StepId
from kdscale.experiment.load import to_dict
from kdscale.store import Artifact, LocalStore
from tests.worlds.artifacts import commit, nothing, table, write_dataset
from tests.worlds.ids import step_id

SHAPES = [Shape("4l-312", 4, 312, 12, 1200), Shape("2l-192", 2, 192, 6, 768)]
CANDIDATES = 30
# How well each system tells a relevant passage from the rest, in standard deviations.
SKILL = {"bm25": 0.9, "teacher": 2.6}
STUDENT_SKILL = {
    "finetune": 1.1,
    "ranker_distill": 1.7,
    "lm_distill_finetune": 1.9,
    "lm_distill_ranker_distill": 2.5,
}
FORWARD_MS = {"teacher": 820.0, "4l-312": 205.0, "2l-192": 61.0}
COST = {  # parameters, of these embeddings, bytes, FLOPs of a pair
    "teacher": (22_713_217, 11_916_672, 90_866_404, 2_870_000_000),
    "4l-312": (14_350_249, 9_682_608, 57_411_200, 1_150_000_000),
    "2l-192": (6_849_217, 5_958_336, 27_405_112, 229_000_000),
}
TOPICS = ("glaucoma", "asthma", "gout", "anemia", "migraine", "shingles", "rosacea", "vertigo")
ASKED = (
    "what are the first symptoms of {}",
    "how is {} diagnosed in children",
    "is {} passed on in families",
    "which foods make {} worse",
    "can {} be prevented",
    "what outlook do people with {} have",
    "how long does {} last without treatment",
    "is it safe to exercise with {}",
    "which medicines help against {}",
    "when should I see a doctor about {}",
)
HOSTILE = '</script><img src=x onerror="alert(1)">&{{ 7*7 }}'


def make_config(root: Path, shapes: list[Shape] | None = None, **changes) -> Config:
    return Config(
        name="health-questions",
        storage=Storage(str(root)),
        source=BeirSource(path="corpus/health"),
        students=SHAPES if shapes is None else shapes,
        report=Report(title="Health questions, two small rankers", examples=5),
        **changes,
    )


def make_inputs(
    config: Config, seed: int = 3, skill: dict[str, float] | None = None, queries: int = 80
) -> dict[StepId, Artifact]:
    """The artifacts that a report is made from, by role, committed to the store of the config.

    `skill` overrides STUDENT_SKILL by strategy. One query and one passage carry HOSTILE text.
    """
    store, rng = LocalStore(Path(config.storage.uri)), np.random.default_rng(seed)
    made: dict[StepId, Artifact] = {}

    def add(role, kind, stage, label, write, inputs=(), facts=None, seconds=1.0, settings=None):
        made[step_id(role)] = commit(
            store,
            kind,
            f"{label}-{len(made):012x}",
            write,
            stage=stage,
            config=settings or {},
            inputs={r: made[step_id(r)] for r in inputs},
            facts={**(facts or {}), "seconds": seconds},
            created=f"2026-03-02T10:{len(made):02d}:17+00:00",
            version="0.1.0",
        )

    world = _World(queries, rng)
    name = config.name
    add("dataset", "datasets", "prepare", name, world.write, seconds=41.2,
        facts={"passages": len(world.passages), "queries": {"test": queries}},
        settings={"source": to_dict(config.source), "seed": 13})  # fmt: skip
    add("tokens", "tokens", "prepare", name, nothing, ["dataset"], {"max_length": 128}, 12.9,
        settings={"max_length": 128})  # fmt: skip
    add("teacher", "teachers", "finetune", name, _log(rng, {"lce": (1.6, 0.35)}, 120),
        ["dataset", "tokens"], {"steps": 1200}, 371.0,
        {"teacher": to_dict(config.teacher)})  # fmt: skip
    add("scores", "scores", "score", name, nothing, ["dataset", "tokens", "teacher"],
        {"pairs": 40_000}, 102.0)  # fmt: skip
    for shape in config.students:
        terms = {"hidden": (0.9, 0.11), "embedding": (0.4, 0.02), "qkv": (2.4, 0.31)}
        add(f"lm:{shape.name}", "lms", "distill-lm", shape.name, _log(rng, terms, 300),
            ["tokens"], {"steps": 3000}, 240.5, {"student": to_dict(shape)})  # fmt: skip
    for shape in config.students:
        for strategy in config.ranker.strategies:
            soft, lm = STRATEGIES[strategy].soft, STRATEGIES[strategy].from_lm
            start = 1.0 if not lm else 0.8
            terms = {"lce": (2.0 * start, 0.5)}
            if soft:
                terms = {"margin_mse": (40.0 * start, 1.1), "listwise_kl": (1.3 * start, 0.2)}
            inputs = ["dataset", "tokens", *["scores"] * soft, *[f"lm:{shape.name}"] * lm]
            add(f"student:{strategy}:{shape.name}", "students", "distill-ranker",
                f"{shape.name}-{strategy}", _log(rng, terms, 90), inputs, {"steps": 900}, 88.0,
                {"student": to_dict(shape), "strategy": strategy})  # fmt: skip
    students = [str(id_) for id_ in made if id_.kind == "student"]
    write = _evaluation(config, world, rng, {**STUDENT_SKILL, **(skill or {})}, made)
    add("evaluation", "evaluations", "evaluate", name, write,
        ["dataset", "tokens", "teacher", *students], {"systems": len(students) + 2}, 65.3,
        {"evaluate": to_dict(config.evaluate)})  # fmt: skip
    return made


class _World:
    """Queries about illnesses, a relevant passage each, and candidates."""

    name, depth = "test", CANDIDATES

    def __init__(self, queries: int, rng: np.random.Generator):
        asked = [(t, a) for a in ASKED for t in TOPICS][:queries]
        self.queries = {f"q{i:03d}": a.format(t) for i, (t, a) in enumerate(asked)}
        self.passages = {
            f"p{i:03d}": f"About {t} ({a.format(t)}): " + _prose(t, rng)
            for i, (t, a) in enumerate(asked)
        }
        self.queries["q000"] += f" {HOSTILE}"
        self.passages["p000"] += f" {HOSTILE}"
        self.qrels = {q: {f"p{i:03d}": 1} for i, q in enumerate(self.queries)}
        pids = list(self.passages)
        self.hard = {q: rng.normal(0, 1.2) for q in self.queries}  # some queries are harder
        self.candidates = {}
        for qid, of_query in self.qrels.items():
            (relevant,) = of_query
            others = [p for p in rng.permutation(pids) if p != relevant]
            self.candidates[qid] = [relevant, *others[: min(CANDIDATES, len(pids)) - 1]]

    def write(self, out: Path) -> None:
        write_dataset(out, self.passages, {"test": self.queries}, {"test": self.qrels})

    def features(self) -> pa.Table:
        """QUERY_FEATURES: drawn, but the harder a query the further down BM25 has its passage."""
        rng, rows = np.random.default_rng(9), []
        for qid, hard in self.hard.items():
            rank = round(3 + 3 * hard + rng.normal(0, 0.5))
            rank = max(1, rank) if rank < 9 else None
            rows.append((qid, rng.integers(2, 12), rng.random(), rng.normal(5, 1), rank))
        return table(QUERY_FEATURES, rows)

    def rank(self, skill: float, rng: np.random.Generator) -> dict[str, list[str]]:
        ranked = {}
        for qid, pids in self.candidates.items():
            scores = rng.normal(0, 1, len(pids))
            scores[0] += skill - 0.4 * self.hard[qid]
            ranked[qid] = [pids[i] for i in np.argsort(-scores)]
        return ranked


def _evaluation(config, world, rng, skill, made):
    evaluate = config.evaluate
    measures = parse_measures(evaluate.measures)
    systems = [("bm25", None, None), ("teacher", None, None)]
    for shape in config.students:
        systems += [(f"{s}/{shape.name}", s, shape.name) for s in config.ranker.strategies]

    def write(out: Path) -> None:
        values: dict[str, dict[str, np.ndarray]] = {m: {} for m in measures}
        (out / "runs/test").mkdir(parents=True)
        depths = DepthRows(evaluate.depths, evaluate.baseline)
        for name, strategy, student in systems:
            strength = SKILL[name] if strategy is None else skill[strategy]
            small = student == "2l-192" and strategy != "lm_distill_ranker_distill"
            ranked = world.rank(strength - 0.2 * small, rng)
            tag = run_tag(name)
            lines = ((q, [(p, -float(r)) for r, p in enumerate(ps)]) for q, ps in ranked.items())
            write_run(out / f"runs/test/{tag}.trec", lines, tag)
            found = per_query(measures, world.qrels, ranked)
            for measure, of_queries in found.items():
                values[measure][name] = of_queries
            depths.add(name, world, measures, ranked, found)
        rows = [
            ("test", name, qid, measure, value)
            for measure, of_systems in values.items()
            for name, of_queries in of_systems.items()
            for qid, value in zip(world.qrels, of_queries, strict=True)
        ]
        write_table(out / "metrics.parquet", table(METRICS, rows), METRICS)
        write_table(out / "depths.parquet", depths.table(), DEPTHS)
        primary = values[evaluate.primary]
        compared = {n: v for n, v in primary.items() if "/" in n or n == evaluate.baseline}
        types = query_types(world.features(), compared, evaluate.baseline, CANDIDATES)
        write_table(out / "query_types.parquet", types, QUERY_TYPES)
        margins = {evaluate.primary: evaluate.margin}
        tests = {
            m: compare_all(v, evaluate.baseline, evaluate.alpha, margins.get(m))
            for m, v in values.items()
        }
        rows = [_row(s, values, tests, rng, made) for s in systems]
        (out / "systems.json").write_text(json.dumps(rows))

    return write


def _row(system, values, tests, rng, made):
    name, strategy, student = system
    role = {"bm25": "dataset"}.get(name, f"student:{strategy}:{student}" if student else name)
    cost = COST.get(student or name, (None,) * 4)
    row = {
        "system": name,
        "strategy": strategy,
        "student": student,
        **dict(
            zip(
                ("parameters", "embedding_parameters", "bytes", "flops_per_pair"), cost, strict=True
            )
        ),
        "measures": {"test": {m: float(v[name].mean()) for m, v in values.items()}},
        "tests": {"test": {m: t[name] for m, t in tests.items() if name in t}},
        "latency": None,
        "speedup": None,
        "artifact": made[step_id(role)].name,
        "digest": made[step_id(role)].digest,
    }
    if name != "bm25":
        forward = FORWARD_MS[student or name] * math.exp(rng.normal(0, 0.03))
        row["latency"] = {
            "candidates": CANDIDATES,
            "threads": 1,
            "queries": 20,
            "tokenise_ms": {"median": 7.4, "p95": 9.1},
            "forward_ms": {"median": forward, "p95": forward * 1.2},
            "total_ms": {"median": forward + 7.4, "p95": forward * 1.2 + 9.1},
        }
        row["speedup"] = (FORWARD_MS["teacher"] + 7.4) / (forward + 7.4)
    return row


def _log(rng, terms: dict[str, tuple[float, float]], rows: int):
    """Writes metrics.jsonl: each term falls from its first value towards its second."""

    def write(out: Path) -> None:
        with (out / "metrics.jsonl").open("w") as handle:
            for i in range(1, rows + 1):
                fall = math.exp(-4 * i / rows)
                now = {
                    t: (b + (a - b) * fall) * math.exp(rng.normal(0, 0.06))
                    for t, (a, b) in terms.items()
                }
                row = {"step": 10 * i, "steps": 10 * rows, "loss": sum(now.values()), "terms": now}
                handle.write(json.dumps(row) + "\n")

    return write


def _prose(topic: str, rng: np.random.Generator) -> str:
    phrases = (
        "most patients improve within weeks",
        "treatment depends on age and general health",
        "a physician may order blood tests",
        "symptoms often come and go",
        "care at home is enough for many",
        "some people need medicine for years",
    )
    chosen = rng.choice(phrases, size=int(rng.integers(6, 24)))
    return f"with {topic}, " + ", ".join(chosen) + "."
