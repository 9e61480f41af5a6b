"""The queries that each student wins and loses most, with the passages that explain why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdscale.data.dataset import Dataset
from kdscale.data.runs import read_run, run_tag
from kdscale.experiment.context import DATASET, EVALUATION
from kdscale.report.evidence import Evidence, Paired, baseline_of

PASSAGE_CHARS = 600


@dataclass(frozen=True)
class Passage:
    """One passage of an example. `what` says why it is shown; ranks are from 1, None: not
    among the candidates; grade None: not judged."""

    what: str
    pid: str
    text: str
    grade: int | None
    baseline_rank: int | None
    student_rank: int | None


@dataclass(frozen=True)
class Example:
    """A query on which a student differs much from the baseline.

    baseline_rank, student_rank: of the first relevant passage in each ranking, None: not there
    """

    system: str
    qid: str
    query: str
    delta: float
    baseline_rank: int | None
    student_rank: int | None
    passages: list[Passage]


def collect_examples(evidence: Evidence) -> list[Example]:
    """For each student the `report.examples` most won and most lost queries, most won first."""
    count = evidence.settings.examples
    names = [s["system"] for s in evidence.students]
    compared = {n: p for n, p in evidence.paired[evidence.split].items() if n in names}
    chosen = {name: _extremes(paired, count) for name, paired in compared.items()}
    wanted = [(name, qid, delta) for name, picked in chosen.items() for qid, delta in picked]
    if not wanted:
        return []
    reading = _Reading(evidence, [(name, qid) for name, qid, _ in wanted])
    return [reading.example(*one) for one in wanted]


def _extremes(paired: Paired, count: int) -> list[tuple[str, float]]:
    """(qid, delta), from the most won to the most lost; ties of delta by qid."""
    order = np.argsort(-paired.delta, kind="stable")
    won = [i for i in order if paired.delta[i] > 0][:count]
    lost = [i for i in order[::-1] if paired.delta[i] < 0][:count][::-1]
    return [(paired.qids[i], float(paired.delta[i])) for i in won + lost]


class _Reading:
    """The rankings, judgments and texts of the chosen queries: a few, whatever the collection."""

    def __init__(self, evidence: Evidence, wanted: list[tuple[str, str]]):
        qids = {qid for _, qid in wanted}
        dataset = Dataset(evidence.inputs[DATASET].path)
        self._min_grade = evidence.settings.min_grade
        self._baseline = evidence.settings.evaluate.baseline
        self._baseline_words = baseline_of(evidence.settings.evaluate)
        runs = evidence.inputs[EVALUATION].path / "runs" / evidence.split
        self._runs = {
            name: {
                qid: [pid for pid, _ in ranking]
                for qid, ranking in read_run(runs / f"{run_tag(name)}.trec")
                if qid in qids
            }
            for name in {self._baseline, *(name for name, _ in wanted)}
        }
        self._grades: dict[str, dict[str, int]] = {}
        qrels = dataset.qrels(evidence.split).to_pydict()
        for qid, pid, grade in zip(*qrels.values(), strict=True):
            if qid in qids:
                self._grades.setdefault(qid, {})[pid] = grade
        self._shown = {(name, qid): self._choose(name, qid) for name, qid in wanted}
        pids = {pid for shown in self._shown.values() for pid in shown}
        self._queries = dataset.query_texts(evidence.split, qids)
        self._texts = dataset.passage_texts(pids)

    def example(self, system: str, qid: str, delta: float) -> Example:
        relevant = self._relevant(qid)
        own, base = self._ranking(system, qid), self._ranking(self._baseline, qid)
        return Example(
            system=system,
            qid=qid,
            query=self._queries[qid],
            delta=delta,
            baseline_rank=_first_rank(base, relevant),
            student_rank=_first_rank(own, relevant),
            passages=[
                Passage(
                    what=what,
                    pid=pid,
                    text=_cut(self._texts[pid]),
                    grade=self._grades.get(qid, {}).get(pid),
                    baseline_rank=_first_rank(base, {pid}),
                    student_rank=_first_rank(own, {pid}),
                )
                for pid, what in self._shown[system, qid].items()
            ],
        )

    def _choose(self, system: str, qid: str) -> dict[str, str]:
        """pid -> why it is shown: the first relevant passages and each ranking's first."""
        relevant = self._relevant(qid)
        rankings = {
            "the student": self._ranking(system, qid),
            self._baseline_words: self._ranking(self._baseline, qid),
        }
        shown: dict[str, list[str]] = {}
        for ranking in rankings.values():
            first = next((p for p in ranking if p in relevant), None)
            if first is not None:
                shown[first] = ["relevant"]
        if not shown and relevant:
            shown[min(relevant)] = ["relevant"]
        for who, ranking in rankings.items():
            if ranking:
                shown.setdefault(ranking[0], []).append(f"first for {who}")
        return {pid: ", ".join(reasons) for pid, reasons in shown.items()}

    def _ranking(self, system: str, qid: str) -> list[str]:
        return self._runs[system].get(qid, [])

    def _relevant(self, qid: str) -> set[str]:
        grades = self._grades.get(qid, {})
        return {pid for pid, grade in grades.items() if grade >= self._min_grade}


def _first_rank(ranking: list[str], wanted: set[str]) -> int | None:
    return next((rank for rank, pid in enumerate(ranking, 1) if pid in wanted), None)


def _cut(text: str) -> str:
    return text if len(text) <= PASSAGE_CHARS else text[: PASSAGE_CHARS - 1].rstrip() + "…"
