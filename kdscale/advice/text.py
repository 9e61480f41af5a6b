"""The advice in sentences, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdscale.advice.candidates import Candidate
from kdscale.advice.decide import OPTIONS, Advice, Judged, queries_needed, span
from kdscale.advice.following import next_trials
from kdscale.evaluation.significance import compare
from kdscale.evaluation.trials import FULL

if TYPE_CHECKING:
    from rich.table import Table

PAPER = "arXiv 2007.11088"
NOTHING_LEFT = (
    "What would decide it is not another setting of these: train longer (ranker.train.epochs), "
    "take a stronger start (lm.train), or ask for less."
)


def named(candidate: Candidate) -> str:
    variant = "" if candidate.variant == "default" else f" ({candidate.variant})"
    return f"{candidate.strategy}/{candidate.shape}{variant}, {share(candidate.budget)}"


def share(budget: float) -> str:
    of = "training queries"
    return f"all {of}" if budget == FULL else f"{100 * budget:.3g} % of the {of}"


def answer(advice: Advice) -> list[str]:
    """What to take, and how it is known; or why there is nothing to take."""
    if advice.chosen is not None:
        return [f"Take {named(advice.chosen.candidate)}.", *_evidence(advice, advice.chosen)]
    nearest = advice.best
    lines = [
        "No student of the table meets these needs.",
        f"Nearest is {named(nearest.candidate)}: " + "; ".join(nearest.misses.values()) + ".",
        *_evidence(advice, nearest),
    ]
    for need, found in advice.without.items():
        if found.candidate is nearest.candidate:
            would = "it meets every other need"
        else:
            would = f"{named(found.candidate)} meets every other need"
        lines.append(f"{OPTIONS[need]} binds: {would}.")
    if not advice.without:
        lines.append("No single need binds: every student misses two or more.")
    room = queries_needed(nearest, _baseline(advice), advice.needs.max_drop)
    if room and room > advice.queries and list(nearest.misses) == ["drop"]:
        lines.append(
            f"If its loss is what these {advice.queries} queries have it to be, about {room:,} "
            "judged queries would show that it is small enough (power 80 %)."
        )
    return lines


def _baseline(advice: Advice) -> np.ndarray:
    return np.asarray(advice.teacher["values"], dtype=np.float64)


def _evidence(advice: Advice, judged: Judged) -> list[str]:
    c, test, needs = judged.candidate, judged.test, advice.needs
    interval = "" if test.ci is None else f" (95 % {test.ci[0]:+.3f} to {test.ci[1]:+.3f})"
    where = " ".join(str(advice.about[k]) for k in ("data", "split") if advice.about.get(k))
    lines = [
        f"  quality    {advice.measure} {c.mean:.3f}, the teacher {_baseline(advice).mean():.3f}: "
        f"{test.delta:+.3f}{interval} over {test.n} queries{' of ' + where if where else ''}"
    ]
    if judged.worse_p is not None:
        corrected = "not corrected" if judged.family is None else f"Holm over {judged.family}"
        lines.append(
            f"             that it loses less than {needs.max_drop:g}: p {judged.worse_p:.2g} "
            f"(one-sided paired t-test, {corrected})"
        )
    lines.append(f"  latency    {_latency(advice, judged)}")
    lines.append(f"  training   {_training(advice, c)}")
    seeds = "1 seed: how much another one differs is not known"
    if len(c.seeds) > 1:
        seeds = f"{len(c.seeds)} seeds, the mean of them; their means vary by {c.seed_sd:.3f} (sd)"
    lines.append(f"  evidence   {seeds}")
    lines += [f"             {name}" for name in c.artifacts or ("no artifact is named",)]
    return lines


def _latency(advice: Advice, judged: Judged) -> str:
    c = judged.candidate
    if judged.ms is None:
        return "not measured"
    of = f"of {advice.candidates} candidates" if advice.candidates else "(how many candidates: ?)"
    cpu = (advice.about.get("hardware") or {}).get("cpu")
    faster = f", {c.speedup:.1f}x faster than the teacher" if c.speedup else ""
    text = f"{judged.ms:.3g} ms a query {of}{faster}{', ' + cpu if cpu else ''}"
    if advice.extrapolated_from:
        text += (
            f"; EXTRAPOLATED, in proportion, from {c.ms:.3g} ms measured for "
            f"{advice.extrapolated_from} candidates"
        )
    return text


def _training(advice: Advice, c: Candidate) -> str:
    if c.train_s is None:
        return "not timed"
    first = advice.needs.update_every_s is None
    parts = [f"{span(c.train_s)} of its own"]
    if c.scores_s:
        parts.append(f"{span(c.scores_s)} of scoring by the teacher")
    if c.lm_s:
        parts.append(f"{span(c.lm_s)} of distilling its language model{'' if first else ', once'}")
    text = ", ".join(parts)
    unknown = c.unknown_costs(first=True)
    if unknown:
        text += f"; not known, and not counted: {', '.join(unknown)} (give --store)"
    return text


def reasons(advice: Advice) -> Iterator[str]:
    """The paper's reasoning, with this table's figures."""
    needs, judged = advice.needs, advice.judged
    of_shape: dict[str, list[float]] = {}
    for j in judged:
        if j.ms is not None:
            of_shape.setdefault(j.candidate.shape, []).append(j.ms)
    times = {shape: float(np.mean(ms)) for shape, ms in of_shape.items()}
    shown = ", ".join(f"{s} {ms:.3g} ms" for s, ms in sorted(times.items(), key=lambda i: i[1]))
    if needs.latency_ms is not None and times:
        fit = sum(ms <= needs.latency_ms for ms in times.values())
        yield (
            f"Online latency fixes the shape: {fit} of {len(times)} shapes rank within "
            f"{needs.latency_ms:g} ms ({shown})."
        )
    elif times:
        yield f"Online latency would fix the shape, and no limit was given ({shown})."
    if needs.update_every_s is not None:
        yield (
            "How often the student is trained again decides what may be paid: its language model "
            "is distilled once and every update starts from it; the teacher scores the pairs of "
            "each update of a student that learns from scores (counted here: all of them; "
            "kdscale adapt scores the new ones alone)."
        )
        c = advice.best.candidate
        update_s = c.training_s(first=False)
        if update_s is not None:
            yield (
                f"An update every {span(needs.update_every_s)} that takes {span(update_s)} keeps "
                f"the machine of the table busy {update_s / needs.update_every_s:.2%} of the time."
            )
            first_s, limit = c.training_s(first=True), needs.train_limit_s
            if first_s is not None and limit is not None and first_s > limit:
                yield (
                    f"Its first training takes {span(first_s)}, longer than {span(limit)}: the "
                    "language model's distillation is paid once."
                )
    elif needs.train_hours is not None:
        yield (
            "One training is counted with all that is made for it: without --update-every the "
            "language model's distillation has no later student to be reused by."
        )
    effects = [*_effects(advice, of_lm=True), *_effects(advice, of_lm=False)]
    if effects:
        shape = advice.best.candidate.shape
        yield (
            "With few training data a distilled language model should count for most, with many "
            f"the teacher's scores add to it. In this table, {shape}:"
        )
        yield from (f"  {effect}" for effect in effects)


def _effects(advice: Advice, of_lm: bool) -> Iterator[str]:
    """What one of the two distillations is worth, where the table has both sides of it."""
    c = advice.best.candidate
    by_setting = {j.candidate.setting: j.candidate for j in advice.judged}
    what = "Distilling the language model" if of_lm else "Teacher scores in place of labels"
    for (strategy, shape, variant, budget), a in sorted(by_setting.items(), key=lambda i: i[0][3]):
        if shape != c.shape or variant != c.variant:
            continue
        known = a.known
        if known is not None and of_lm and known.from_lm:
            other = replace(known, from_lm=False).name
        elif known is not None and not of_lm and known.soft:
            other = replace(known, soft=False).name
        else:
            continue
        b = by_setting.get((other, shape, variant, budget))
        if b is not None:
            test = compare(a.values, b.values)
            p = "" if test.p is None else f", p {test.p:.2g} uncorrected"
            yield f"{what}: {test.delta:+.3f} with {share(budget)} ({strategy}, not {other}{p})."


def table_of(advice: Advice) -> Table:
    """A row a candidate, the best first."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("student", "data", "seeds", advice.measure, "Δ", "ms", "training", "misses"):
        right = title not in ("student", "data", "misses")
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for j in sorted(advice.judged, key=lambda j: -j.candidate.mean):
        c = j.candidate
        seconds = c.training_s(first=advice.needs.update_every_s is None)
        table.add_row(
            f"{c.strategy}/{c.shape}" + ("" if c.variant == "default" else f" {c.variant}"),
            f"{100 * c.budget:.3g} %", str(len(c.seeds)), f"{c.mean:.3f}", f"{j.test.delta:+.3f}",
            "-" if j.ms is None else f"{j.ms:.3g}", "-" if seconds is None else span(seconds),
            ", ".join(j.misses) or "-",
        )  # fmt: skip
    return table


def following(advice: Advice) -> list[str]:
    trials = next_trials(advice)
    if not trials:
        return [] if advice.chosen else [NOTHING_LEFT]
    known = advice.about.get("train_queries")
    head = "To be surer:" if advice.chosen else "What would decide it:"
    lines = [head]
    for trial in trials:
        lines += [f"  {trial.command(known)}", f"      ({trial.why})"]
    return lines


def as_json(advice: Advice) -> dict[str, Any]:
    known = advice.about.get("train_queries")
    return {
        "needs": vars(advice.needs),
        "measure": advice.measure,
        "queries": advice.queries,
        "teacher": {"mean": advice.teacher["mean"], "artifact": advice.teacher["artifact"]},
        "candidates": advice.candidates,
        "latency_extrapolated_from_candidates": advice.extrapolated_from,
        "chosen": advice.chosen and _row(advice.chosen),
        "nearest": advice.nearest and _row(advice.nearest),
        "binding": {OPTIONS[need]: named(j.candidate) for need, j in advice.without.items()},
        "next": [
            {
                "strategy": t.strategy,
                "shape": t.shape,
                "budget": t.budget,
                "seed": t.seed,
                "why": t.why,
                "extrapolated": t.made_up is not None,
                "command": t.command(known),
            }
            for t in next_trials(advice)
        ],
        "reasons": list(reasons(advice)),
        "judged": [_row(j) for j in advice.judged],
    }


def _row(judged: Judged) -> dict[str, Any]:
    c = judged.candidate
    return {
        "strategy": c.strategy,
        "shape": c.shape,
        "variant": c.variant,
        "budget": c.budget,
        "seeds": list(c.seeds),
        "artifacts": list(c.artifacts),
        "mean": c.mean,
        "seed_sd": c.seed_sd,
        "delta": judged.test.delta,
        "ci": judged.test.ci,
        "p": judged.test.p,
        "noninferior_p": judged.worse_p,
        "holm_over": judged.family,
        "ms": judged.ms,
        "speedup": c.speedup,
        "parameters": c.parameters,
        "bytes": c.bytes,
        "train_seconds": c.train_s,
        "lm_seconds": c.lm_s,
        "scores_seconds": c.scores_s,
        "misses": dict(judged.misses),
    }
