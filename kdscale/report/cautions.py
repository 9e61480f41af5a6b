"""What of the data bears on the figures: what was cut off, and queries or passages met twice."""

from __future__ import annotations

from kdscale.data.leakage import describe as describe_leaks
from kdscale.data.queries import TRAIN
from kdscale.data.token_cuts import describe as describe_cuts
from kdscale.report.evidence import Evidence


def cautions(evidence: Evidence) -> list[str]:
    """Sentences for below the table of results; none where there is nothing to say."""
    return [f"{said}." for said in (*_cuts(evidence), *_leaks(evidence), *_unjudged(evidence))]


def _cuts(evidence: Evidence) -> list[str]:
    tokens, max_length = evidence.inputs["tokens"].facts, evidence.config.prepare.max_length
    pairs = tokens.get("pairs", {})
    shown = [split for split in (*evidence.config.evaluate.splits, TRAIN) if split in pairs]
    said = [describe_cuts(split, pairs[split], max_length) for split in shown]
    return [sentence for sentence in said if sentence]


def _leaks(evidence: Evidence) -> list[str]:
    train = evidence.inputs["dataset"].facts.get("queries", {}).get(TRAIN, {})
    of_transfers = evidence.inputs["evaluation"].facts.get("leaked", {})
    own = {} if train.get("dropped_as_leaked") else train.get("leaked", {})
    leaks = {
        split: count
        for split, count in (*own.items(), *of_transfers.items())
        if split in evidence.config.evaluate.splits or split in of_transfers
    }
    if not leaks:
        return []
    said = describe_leaks(leaks)
    return [f"{said[0].upper()}{said[1:]}; figures there look better than they are"]


def _unjudged(evidence: Evidence) -> list[str]:
    equal = evidence.inputs["dataset"].facts.get("candidates_equal", {})
    return [
        f"Candidates of {split} with the text of a relevant passage, but without a judgment: "
        f"{equal[split]['unjudged']}. They count as not relevant"
        for split in evidence.config.evaluate.splits
        if equal.get(split, {}).get("unjudged")
    ]
