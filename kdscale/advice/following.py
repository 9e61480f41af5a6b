"""What to run next: settings that the table does not have, and why each would tell something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from kdscale.advice.decide import DROP, LATENCY, TRAINING, Advice, Judged
from kdscale.config import STRATEGIES, Shape
from kdscale.evaluation.trials import FULL

TRIALS = 2
HEAD = 32  # the width of an attention head of a shape that we make up
_NAMED = re.compile(r"(\d+)l-(\d+)")  # shapes whose name says what they are


@dataclass(frozen=True)
class Trial:
    """A setting to be tried. made_up: its shape, where the table has none of that name."""

    strategy: str
    shape: str
    budget: float
    seed: int | None
    why: str
    made_up: Shape | None = None

    def command(self, train_queries: int | None) -> str:
        """train_queries: how many the budget is a share of; None where that is not known."""
        parts = ["kdscale distill-ranker CONFIG"]
        if self.made_up is not None:
            shape = {k: v for k, v in asdict(self.made_up).items() if v}
            inside = ", ".join(f"{key}: {value}" for key, value in shape.items())
            parts.append(f"--set 'students=[{{{inside}}}]'")
        parts.append(f"--student {self.shape} --strategy {self.strategy}")
        if self.budget < FULL:
            count = f"{self.budget:.0%}-OF-THE-QUERIES"
            if train_queries:
                count = str(max(1, round(self.budget * train_queries)))
            parts.append(f"--set ranker.max_queries={count}")
        if self.seed is not None:
            parts.append(f"--set ranker.seed={self.seed}")
        return " ".join(parts)


def next_trials(advice: Advice) -> list[Trial]:
    """At most two, the most telling first; none where enough is known."""
    tried = {(c.strategy, c.shape, c.budget) for c in (j.candidate for j in advice.judged)}
    if advice.chosen is not None:
        alone = len(advice.chosen.candidate.seeds) == 1
        return _more_seeds(advice.chosen, "whether other seeds do as well") if alone else []
    affordable = [j for j in advice.judged if j.family]
    source = _for_quality(advice, affordable) if affordable else _for_cost(advice)
    found: list[Trial] = []
    for trial in source:
        setting = (trial.strategy, trial.shape, trial.budget)
        if setting not in tried or trial.seed is not None:
            tried.add(setting)
            found.append(trial)
    return found[:TRIALS]


def _more_seeds(judged: Judged, why: str) -> list[Trial]:
    c = judged.candidate
    last = max((seed for seed in c.seeds if seed is not None), default=0)
    return [Trial(c.strategy, c.shape, c.budget, last + n, why) for n in range(1, TRIALS + 1)]


def _for_quality(advice: Advice, affordable: list[Judged]) -> Iterator[Trial]:
    """Latency and training are met, and too much is lost, or that it is not was not shown."""
    best = max(affordable, key=lambda j: j.candidate.mean)
    c, limit = best.candidate, advice.needs.latency_ms
    if -best.test.delta < advice.needs.max_drop:
        yield from _more_seeds(best, "the mean over more seeds varies less")[:1]
    for budget in sorted({FULL, *(j.candidate.budget for j in advice.judged)}):
        if budget > c.budget and _trains_in_time(advice, best, budget / c.budget):
            yield Trial(c.strategy, c.shape, budget, None, "the best that is affordable, more data")
    larger = {
        j.candidate.shape: j.ms
        for j in advice.judged
        if LATENCY not in j.misses and j.ms is not None and j.ms > (best.ms or 0.0)
    }
    for shape in sorted(larger, key=lambda shape: larger[shape], reverse=True):
        yield Trial(c.strategy, shape, c.budget, None, "the largest measured shape that is in time")
    for strategy in reversed(list(STRATEGIES)):
        yield Trial(strategy, c.shape, c.budget, None, "the same shape, another strategy")
    # Shapes that nobody has measured come last: as much larger as the limit allows.
    yield from _reshaped(best, limit / best.ms if limit and best.ms else 2.0, limit)


def _trains_in_time(advice: Advice, judged: Judged, times: float) -> bool:
    """Whether a training on so many times the data would be, where all of it grew with them."""
    limit = advice.needs.train_limit_s
    seconds = judged.candidate.training_s(first=advice.needs.update_every_s is None)
    return limit is None or seconds is None or seconds * times <= limit


def _for_cost(advice: Advice) -> Iterator[Trial]:
    """No student meets the needs of latency and training."""
    needs = advice.needs
    best = max(advice.judged, key=lambda j: (DROP not in j.misses, j.candidate.mean))
    timed = [(j.ms, j) for j in advice.judged if j.ms is not None]
    if needs.latency_ms and timed and all(LATENCY in j.misses for _, j in timed):
        fastest_ms, fastest = min(timed, key=lambda t: t[0])
        shaped_as = replace(
            fastest, candidate=replace(best.candidate, shape=fastest.candidate.shape)
        )
        yield from _reshaped(shaped_as, needs.latency_ms / fastest_ms, needs.latency_ms)
        return
    in_time = [j for j in advice.judged if LATENCY not in j.misses and TRAINING in j.excess]
    limit = needs.train_limit_s
    if in_time and limit:
        slow = max(in_time, key=lambda j: (DROP not in j.misses, j.candidate.mean))
        c = slow.candidate
        if c.scores_s:
            other = "lm_distill_finetune" if c.uses_lm else "finetune"
            yield Trial(other, c.shape, c.budget, None, "it needs no scoring by the teacher")
        budget = float(f"{c.budget / slow.excess[TRAINING]:.1g}")
        if 0 < budget < c.budget:
            yield Trial(c.strategy, c.shape, budget, None, "the same with the data of one training")


def _reshaped(judged: Judged, times: float, limit_ms: float | None) -> Iterator[Trial]:
    """The shape with so many times the layers, and with so many times the arithmetic by its width;
    none where the shape's name does not say what it is."""
    named = _NAMED.fullmatch(judged.candidate.shape)
    if not named:
        return
    layers, hidden = int(named[1]), int(named[2])
    # The matrix products of a layer grow with the square of its width.
    wide = int(hidden * times**0.5) // HEAD * HEAD
    for new_layers, new_hidden in ((int(layers * times), hidden), (layers, wide)):
        if new_layers and new_hidden and (new_layers, new_hidden) != (layers, hidden):
            yield _made_up(judged, new_layers, new_hidden, limit_ms)


def _made_up(judged: Judged, layers: int, hidden: int, limit_ms: float | None) -> Trial:
    """A shape that was not measured: what its latency will be is an extrapolation."""
    heads = max(1, hidden // HEAD)
    while hidden % heads:
        heads -= 1
    c = judged.candidate
    shape = Shape(f"{layers}l-{hidden}", layers, hidden, heads, 4 * hidden)
    if limit_ms and judged.ms:
        why = f"EXTRAPOLATED from {judged.ms:.3g} ms of {c.shape} to be near {limit_ms:g} ms"
    else:
        why = f"larger than {c.shape}, its latency not known"
    return Trial(c.strategy, shape.name, c.budget, None, f"{why}; not measured", shape)
