"""The scores of several teachers joined to one artifact, from which students learn as from any."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from kdscale.data.ensemble import Scale, combine, write_scales
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards, write_shards
from kdscale.errors import KdscaleError
from kdscale.stages.context import StageContext

PAIR = ["pair_id", "qid", "pid"]


def run(ctx: StageContext) -> dict[str, Any]:
    """`inputs`: the teachers' scores, the first teacher's first.

    Raises KdscaleError where they are not of the same pairs.
    """
    tables = {role: read_shards(a.path, SCORES) for role, a in ctx.inputs.items()}
    (first, pairs), *others = tables.items()
    for role, table in others:
        if not table.select(PAIR).equals(pairs.select(PAIR)):
            raise KdscaleError(
                f"{role} ({table.num_rows} pairs) is not of the pairs of {first} "
                f"({pairs.num_rows}); remove both artifacts and run the score stage again"
            )
    scores = [table["score"].to_numpy() for table in tables.values()]
    scales = [Scale.of(own, role) for own, role in zip(scores, tables, strict=True)]
    joined = pa.array(combine(scores, scales), pa.float64()).cast(pa.float32())
    table = pa.table([*pairs.select(PAIR).columns, joined], schema=SCORES)
    write_shards(ctx.out, table, SCORES, ctx.config.prepare.shards)
    write_scales(ctx.out, scales)
    return {
        "pairs": table.num_rows,
        "teachers": [a.facts.get("teacher") for a in ctx.inputs.values()],
        "score_means": [round(scale.mean, 4) for scale in scales],
        "score_stds": [round(scale.std, 4) for scale in scales],
    }
