"""The page of an experiment."""

from __future__ import annotations

from typing import Any

from kdscale.experiment.context import StageContext
from kdscale.experiment.settings import ReportSettings


def run(ctx: StageContext[ReportSettings]) -> dict[str, Any]:
    """Write index.html from the evaluation and everything that it came from."""
    from kdscale.report.evidence import collect
    from kdscale.report.page import render_page
    from kdscale.report.verdict import judge

    evidence = collect(ctx.settings, ctx.inputs)
    verdict = judge(evidence)
    page = render_page(evidence, verdict)
    # Half a surrogate pair, which JSON can spell, is shown as a question mark.
    (ctx.out / "index.html").write_text(page, encoding="utf-8", errors="replace")
    return {
        "student": verdict.system["system"] if verdict.system else None,
        "standing": verdict.standing,
        "systems": len(evidence.systems),
    }
