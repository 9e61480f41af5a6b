"""The cost model: seconds and bytes of every step of a config.

A step is its start-up, what every device does of it, and what one process does alone. Matrix
products and the values written beside them are counted from the models' shapes, and divided by
what a device does of each a second; padding is found by putting sampled pairs into batches as the
training does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kdscale.config import Config, Train
from kdscale.data.queries import TRAIN
from kdscale.experiment.context import TEACHER, StepId
from kdscale.experiment.steps import Step, build_steps
from kdscale.planning.counts import CHARS_PER_TOKEN, Counts
from kdscale.planning.rates import Rates
from kdscale.planning.shapes import Model, models_of
from kdscale.training.batches import POOL_BATCHES
from kdscale.training.groups import CHUNK_MIN_PAIRS, CHUNKS, WORTHWHILE_SAVING

START, EVERYWHERE, ALONE = "start-up", "on all devices", "in one process"
# Of one Python process: seconds a training pair (its ids are looked up, its length counted), a
# judged query and system (measures, run files).
PAIR_S, QUERY_S = 4e-6, 2e-3
# Bytes of a row or token in compressed Parquet, as our stores have them.
TEXT_BYTES, TOKEN_BYTES, CANDIDATE_BYTES, PAIR_BYTES = 0.5, 2.2, 12.0, 14.0
PARAMETER_BYTES = 4.0
TASK_S = 1.0  # until a Ray task runs that reads texts: it imports little
REPORT_S, REPORT_BYTES = 1.5, 3e6


@dataclass
class Stage:
    """One step. seconds: by START, EVERYWHERE and ALONE; bytes: that it leaves in the store."""

    name: str
    stage: str
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    flops: float = 0.0
    cached: bool = False

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Machines:
    """device: what trains and scores, so many of them; host: the cores around them, all told."""

    device: Rates
    devices: int
    host: Rates
    cores: int


class CostModel:
    """Costs of a config's steps over so much data on such machines."""

    def __init__(self, config: Config, counts: Counts, machines: Machines):
        self.config, self.counts, self.machines = config, counts, machines
        self.teachers, self.students = models_of(config)
        self.length = float(np.mean(counts.lengths))  # of a pair, sorted into even batches

    def stages(self, cached: frozenset[StepId] = frozenset()) -> list[Stage]:
        """In the order in which they run. cached: the steps that the store has."""
        costs: dict[str, Callable[[Step], Stage]] = {
            "prepare": self._prepare,
            "finetune": self._finetune,
            "score": self._score,
            "ensemble": lambda step: Stage(step.name, step.stage, {ALONE: 1.0}),
            "distill-lm": self._language_model,
            "distill-ranker": self._student,
            "evaluate": self._evaluate,
            "report": lambda s: Stage(s.name, s.stage, {ALONE: REPORT_S}, REPORT_BYTES),
        }
        stages = []
        for step in build_steps(self.config).values():
            stage = costs[step.stage](step)
            stage.cached = step.id in cached
            stages.append(stage)
        first = next((s for s in stages if not s.cached), None)
        if first is not None:  # which is the one that starts Ray
            first.seconds[START] = first.seconds.get(START, 0.0) + self.machines.host.ray_start
        return stages

    def _prepare(self, step: Step) -> Stage:
        """Transfer collections are taken to cost nothing: how large they are is not known."""
        counts, host, cores = self.counts, self.machines.host, self.machines.cores
        if step.id.collection is not None:
            return Stage(step.name, step.stage)
        tokens = counts.text_chars / CHARS_PER_TOKEN
        # A source that brings candidates needs no search for those splits.
        source = self.config.source
        brought = getattr(source, "candidates", None) or getattr(source, "runs", None) or {}
        queries = sum(n for split, n in counts.queries.items() if split not in brought)
        if step.kind == "tokens":
            spread = counts.text_chars / host.tokenise_chars / cores
            size = tokens * TOKEN_BYTES + counts.blocks * self.config.prepare.block_length * 4.0
            return Stage(step.name, step.stage, {START: TASK_S, EVERYWHERE: spread}, size)
        search = queries * counts.passages / host.search_passages
        a_char = 1 / host.clean_chars + 1 / host.index_chars
        spread = (counts.text_chars * a_char + search) / cores
        size = counts.text_chars * TEXT_BYTES + counts.pairs * PAIR_BYTES
        size += (
            sum(n * self.config.prepare.depth_of(split) for split, n in counts.queries.items())
            * CANDIDATE_BYTES
        )
        return Stage(step.name, step.stage, {START: TASK_S, EVERYWHERE: spread}, size)

    def _finetune(self, step: Step) -> Stage:
        teacher = self.config.teachers[step.id.teacher - 1]
        model = self.teachers[step.id.teacher - 1]
        group = min(teacher.group_size, 1 + self.config.prepare.negatives)
        return self._ranker(step, model, teacher.train, teacher.max_queries, group)

    def _student(self, step: Step) -> Stage:
        ranker, prepare = self.config.ranker, self.config.prepare
        model = self._student_model(step)
        group = min(ranker.group_size, 1 + prepare.negatives + prepare.easy_negatives)
        teacher = self.teachers[0] if TEACHER in step.inputs else None
        stage = self._ranker(step, model, ranker.train, ranker.max_queries, group, teacher)
        watch = ranker.watch
        if watch.every:
            steps = self._steps(ranker.train, self._queries(ranker.max_queries))
            pairs = (steps // watch.every + 2) * (watch.queries + watch.train_queries) * watch.depth
            stage.seconds[EVERYWHERE] += self._forward(model, pairs) / self.machines.devices
        return stage

    def _student_model(self, step: Step) -> Model:
        """Of a student's step, or of a language model's."""
        assert step.id.shape is not None
        return self.students[step.id.shape]

    def _queries(self, limit: int | None) -> int:
        queries = self.counts.queries.get(TRAIN, 0)
        return queries if limit is None else min(limit, queries)

    def _steps(self, train: Train, items: int) -> int:
        from kdscale.training.loop import total_steps

        return total_steps(train, max(1, items // min(train.batch_size, max(1, items))))

    def _ranker(
        self, step: Step, model: Model, train: Train, limit: int | None, group: int,
        teacher: Model | None = None,
    ) -> Stage:  # fmt: skip
        """teacher: that reads every pair beside the model, for the intermediate losses."""
        steps = self._steps(train, self._queries(limit))
        pairs = steps * train.batch_size * group
        length = padded_length(self.counts.lengths, group, train.batch_size)
        compute = self._training(model, pairs, length)
        if teacher is not None:
            compute += self._forward(teacher, pairs, length)
        stage = self._trained(step, model, steps, compute)
        stage.seconds[ALONE] = self.counts.pairs * PAIR_S  # every worker looks at all pairs
        stage.flops = 3 * pairs * model.flops(round(length))
        return stage

    def _language_model(self, step: Step) -> Stage:
        lm, block = self.config.lm, self.config.prepare.block_length
        model = self._student_model(step)
        steps = self._steps(lm.train, self.counts.blocks)
        blocks = steps * min(lm.train.batch_size, max(1, self.counts.blocks))
        compute = self._forward(self.teachers[0], blocks, block)
        compute += self._training(model, blocks, block)
        stage = self._trained(step, model, steps, compute * self.machines.device.lm)
        stage.flops = blocks * (self.teachers[0].flops(block) + 3 * model.flops(block))
        return stage

    def _trained(self, step: Step, model: Model, steps: int, compute: float) -> Stage:
        """compute: seconds on one device."""
        device, count = self.machines.device, self.machines.devices
        update = model.parameters / device.parameters
        # A ring: each device sends, and gets, all gradients twice but for its own share.
        traffic = 2 * (count - 1) / count * model.parameters * 4 / device.link
        started = self.config.cluster.engine == "deepspeed"
        seconds = {
            START: self.machines.host.training_start if started else 1.0,
            EVERYWHERE: compute / count + steps * (update + traffic),
        }
        return Stage(step.name, step.stage, seconds, model.parameters * PARAMETER_BYTES)

    def _score(self, step: Step) -> Stage:
        model, pairs = self.teachers[step.id.teacher - 1], self.counts.pairs
        seconds = {
            START: self.machines.host.actor_start,
            EVERYWHERE: self._forward(model, pairs) / self.machines.devices,
            ALONE: 2 * pairs * PAIR_S,
        }
        flops = pairs * model.flops(round(self.length))
        return Stage(step.name, step.stage, seconds, pairs * PAIR_BYTES, flops)

    def _evaluate(self, step: Step) -> Stage:
        """By the driver alone, on one device; latency on some threads of its CPU."""
        evaluate = self.config.evaluate
        depths = {s: min(evaluate.depth, self.config.prepare.depth_of(s)) for s in evaluate.splits}
        queries = {s: self.counts.queries.get(s, 0) for s in evaluate.splits}
        pairs = sum(queries[s] * depths[s] for s in evaluate.splits)
        models = self.teachers + [
            self.students[shape.name]
            for shape in self.config.students
            for _ in self.config.ranker.strategies
        ]
        one = self.machines.host
        length = round(self.length)
        timed = (evaluate.latency_queries + 1) * max(depths.values(), default=0)
        thread = one.one_thread * min(evaluate.latency_threads, max(1, one.cores))
        seconds = sum(
            self._forward(m, pairs)
            + timed * one.forward.seconds(m.flops(length), m.elements(length)) / min(1.0, thread)
            for m in models
        )
        seconds += sum(queries.values()) * QUERY_S * (1 + len(models))
        size = pairs * (1 + len(models)) * 45.0  # a line of a run file
        flops = sum(pairs * m.flops(length) for m in models)
        return Stage(step.name, step.stage, {ALONE: seconds}, size, flops)

    def _forward(self, model: Model, pairs: float, length: float | None = None) -> float:
        """Seconds on one device."""
        n = round(length or self.length)
        return pairs * self.machines.device.forward.seconds(model.flops(n), model.elements(n))

    def _training(self, model: Model, pairs: float, length: float) -> float:
        n = round(length)
        return pairs * self.machines.device.training.seconds(model.flops(n), model.elements(n))


def padded_length(lengths: np.ndarray, group: int, batch: int) -> float:
    """What a pair is padded to in training, on the mean: groups of like length make a step, and a
    step's pairs run in chunks of like length (`kdscale.training.batches`,
    `kdscale.training.groups`)."""
    rng = np.random.default_rng(0)
    groups = rng.choice(lengths, (POOL_BATCHES * batch, group))
    groups = groups[np.argsort(groups.max(axis=1), kind="stable")]
    padded = []
    for start in range(0, len(groups), batch):
        ordered = np.sort(groups[start : start + batch].ravel())
        parts = np.array_split(ordered, max(1, min(CHUNKS, len(ordered) // CHUNK_MIN_PAIRS)))
        cut = sum(len(part) * part[-1] for part in parts)
        whole = len(ordered) * ordered[-1]
        padded.append((cut if cut < (1 - WORTHWHILE_SAVING) * whole else whole) / len(ordered))
    return float(np.mean(padded))
