"""The page: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import kdscale
from kdscale.config import STRATEGIES
from kdscale.experiment.context import StepId
from kdscale.paths import user_path
from kdscale.report import figures
from kdscale.report.evidence import TEACHER, Curve, Evidence, baseline_of, cautions
from kdscale.report.sections.convergence import convergence
from kdscale.report.sections.examples import collect_examples
from kdscale.report.sections.lineage import build_tree, to_yaml
from kdscale.report.sections.query_types import query_types_view
from kdscale.report.sections.rankings import rankings_view
from kdscale.report.sections.robustness import depths_view, transfer_view
from kdscale.report.sections.trials import trials_view
from kdscale.report.verdict import Verdict, signed

STRATEGY_WORDS = {
    "finetune": "random student, labels: what the others must beat",
    "ranker_distill": "random student, teacher scores",
    "lm_distill_finetune": "distilled language model, labels",
    "lm_distill_ranker_distill": "distilled language model, teacher scores",
}
SYSTEM_WORDS = {
    "bm25": "the first stage's order",
    "ensemble": "the mean of the teachers' scores, each on one scale",
}


def render_page(evidence: Evidence, verdict: Verdict) -> str:
    """The whole page. Every value that is not ours is escaped by the template."""
    script = asset("page.js") + asset("rankings.js")
    template = environment().get_template("page.html")
    return template.render(
        title=evidence.settings.title,
        name=evidence.settings.name,
        version=kdscale.__version__,
        created=max(a.manifest["created"] for a in evidence.inputs.values()),
        style=Markup(asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        evidence=evidence,
        evaluate=evidence.settings.evaluate,
        example_count=evidence.settings.examples,
        splits=[
            s for s in evidence.systems[0]["measures"] if s in evidence.settings.evaluate.splits
        ],
        measures=_measures(evidence),
        primary_words=_primary_words(evidence),
        baseline=baseline_of(evidence.settings.evaluate),
        base=evidence.system(evidence.settings.evaluate.baseline),
        teacher=evidence.system(TEACHER),
        verdict=verdict,
        cautions=cautions(evidence),
        trials=_trials(evidence),
        latency=next((s["latency"] for s in evidence.systems if s["latency"]), None),
        words_of=SYSTEM_WORDS,
        strategies=[(s, STRATEGY_WORDS[s], _marker(s)) for s in _strategies(evidence)],
        tradeoff=_tradeoff(evidence),
        depths=depths_view(evidence, verdict),
        transfers=transfer_view(evidence),
        query_types=query_types_view(evidence, verdict),
        rankings=rankings_view(evidence, verdict),
        curves=_curve_groups(evidence),
        convergence=convergence(evidence),
        deltas=_deltas(evidence),
        examples=collect_examples(evidence),
        config_yaml=to_yaml({**evidence.settings.config, **evidence.settings.resources}),
        tree=build_tree(evidence.inputs),
        anchors={role: f"artifact-{i}" for i, role in enumerate(evidence.inputs)},
    )


def environment() -> jinja2.Environment:
    """For the templates of this package: everything that is not ours is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("kdscale.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(
        millions=lambda v: f"{v / 1e6:.1f}",
        milliseconds=lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.2f}" if v < 10 else f"{v:.1f}",
        p=lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
        signed=signed,
        when=lambda stamp: stamp.replace("T", " ").replace("+00:00", " UTC"),
        role=_role_words,
        color=lambda strategy: figures.color_of("", strategy).replace("_", "-"),
        breakable=lambda text: Markup("_<wbr>").join(text.split("_")),
        seconds=_seconds,
        bytes=_bytes,
    )
    return made


def asset(name: str) -> str:
    return resources.files("kdscale.report").joinpath(name).read_text(encoding="utf-8")


def _measures(evidence: Evidence) -> dict[str, list[str]]:
    """Of each split its measures, the primary one first, then as in the config."""
    primary_of = evidence.settings.evaluate.primary_of

    def ordered(split: str, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda m: m != primary_of(split))

    measures = evidence.systems[0]["measures"]
    return {split: ordered(split, names) for split, names in measures.items()}


def _primary_words(evidence: Evidence) -> str:
    """The primary measure, or those of the splits."""
    evaluate = evidence.settings.evaluate
    of_splits = {split: evaluate.primary_of(split) for split in evaluate.splits}
    if len(set(of_splits.values())) == 1:
        return evidence.primary
    return ", ".join(f"{measure} on {split}" for split, measure in of_splits.items())


def _strategies(evidence: Evidence) -> list[str]:
    used = {s["strategy"] for s in evidence.students}
    return [s for s in STRATEGIES if s in used]


def _marker(strategy: str) -> str:
    return {"s": "■", "o": "●", "^": "▲", "D": "◆"}[figures.MARKERS[strategy]]


def _tradeoff(evidence: Evidence) -> dict[str, Any] | None:
    """The first figure drawn for a wide and for a narrow screen; None without any latency."""
    if not any(s["latency"] for s in evidence.systems):
        return None
    return {
        "wide": Markup(figures.tradeoff(evidence, 8.6, 4.6, "tradeoff")),
        "narrow": Markup(figures.tradeoff(evidence, 4.0, 4.4, "tradeoff-narrow")),
        "label": figures.tradeoff_label(evidence),
    }


def _trials(evidence: Evidence) -> dict[str, Any] | None:
    file = evidence.settings.trials
    if file is None:
        return None
    return trials_view(user_path(file.path, file.setting), evidence.settings.evaluate)


def _curve_groups(evidence: Evidence) -> list[dict[str, Any]]:
    """Teacher, language models and students shape by shape: a panel a term, a line a run."""
    shapes = [shape.name for shape in evidence.settings.students]
    groups: dict[str, dict[str, list[tuple[Curve, str, int, str]]]] = {}
    for curve in evidence.curves:
        run = curve.run
        if run.strategy is not None:
            title, name = f"Student rankers, {run.shape}", run.strategy.name
            color, dash = name, list(STRATEGIES).index(name)
        elif run.shape is not None:
            title, name = "Student language models", run.shape
            dash = shapes.index(run.shape) % figures.SHAPES
            color = f"shape_{dash + 1}"
        else:
            title, name, color = "Teacher ranker", str(run), "teacher"
            dash = (run.teacher - 1) % len(figures.SVG_DASHES)
        groups.setdefault(title, {}).setdefault(curve.term, []).append((curve, color, dash, name))
    return [
        {"title": title, "panels": [_curve_panel(title, t, lines) for t, lines in terms.items()]}
        for title, terms in groups.items()
    ]


def _curve_panel(title: str, term: str, lines: list[tuple[Curve, str, int, str]]) -> dict[str, Any]:
    said = [f"{name} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for c, _, _, name in lines]
    slug = figures.slug(f"curve-{title}-{term}")
    return {
        "term": term,
        "svg": Markup(figures.curve_panel([line[:3] for line in lines], slug)),
        "label": f"{title}, loss term {term} over the training steps: {'; '.join(said)}.",
        "lines": [
            {"name": name, "color": color, "dash": figures.SVG_DASHES[dash], "last": c.values[-1]}
            for c, color, dash, name in lines
        ],
    }


def _deltas(evidence: Evidence) -> list[dict[str, Any]]:
    """A panel a student, all with one y range."""
    paired = evidence.paired[evidence.split]
    students = [s for s in evidence.students if s["system"] in paired]
    limit = max((abs(paired[s["system"]].delta).max() for s in students), default=0.0) or 1.0
    primary, baseline = evidence.primary, baseline_of(evidence.settings.evaluate)
    panels = []
    for system in students:
        name, test = system["system"], evidence.test(system)
        assert test is not None  # it has a difference, and so a test of it
        slug = figures.slug(f"delta-{name}")
        panels.append(
            {
                "name": name,
                "strategy": system["strategy"],
                "test": test,
                "svg": Markup(
                    figures.delta_panel(paired[name], float(limit) * 1.05, slug, primary)
                ),
                "label": f"Sorted differences of {name} from {baseline}: "
                f"{test['wins']} queries won, {test['ties']} equal, {test['losses']} lost.",
            }
        )
    return panels


def _role_words(role: StepId) -> str:
    """The role of an artifact as people say it: "student lm_distill_finetune/2l-192"."""
    words = {"lm": "language model"}.get(role.kind, role.kind)
    parts = [
        role.collection,
        role.strategy.name if role.strategy else None,
        role.shape,
        str(role.teacher) if role.teacher > 1 else None,
    ]
    return f"{words} {'/'.join(part for part in parts if part)}".rstrip()


def _seconds(value: float) -> str:
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts: Iterable[tuple[int, str]] = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    if value < 10:
        return f"{value:.1f} s"
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
