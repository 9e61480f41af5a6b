"""A plan as a table, sentences and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from kdscale.advice.decide import span
from kdscale.config import Config
from kdscale.planning.counts import Counts
from kdscale.planning.model import ALONE, EVERYWHERE, START, CostModel, Machines, Stage
from kdscale.planning.rates import UTILISATION

ACTIVATION_BYTES = 34.0  # of a token, hidden unit and layer in bf16 (arXiv 2205.05198)
STATE_BYTES = 16.0  # of a parameter: weight, gradient and AdamW's two moments in fp32


@dataclass(frozen=True)
class Plan:
    config: Config
    counts: Counts
    machines: Machines
    model: CostModel
    stages: list[Stage]
    price: float | None  # an hour, of one GPU or of the machine

    @property
    def to_run(self) -> list[Stage]:
        return [stage for stage in self.stages if not stage.cached]

    @property
    def seconds(self) -> float:
        return sum(stage.total for stage in self.to_run)

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.to_run)

    @property
    def cost(self) -> float | None:
        """All devices are paid for as long as the whole takes."""
        if self.price is None:
            return None
        return self.seconds / 3600 * self.price * self.machines.devices

    @property
    def slowest(self) -> Stage | None:
        return max(self.to_run, key=lambda stage: stage.total, default=None)


def show(plan: Plan) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("step", no_wrap=True)
    for title in ("time", START, EVERYWHERE, ALONE, "TFLOP", "storage"):
        table.add_column(title, justify="right", no_wrap=True)
    for stage in plan.stages:
        if stage.cached:
            table.add_row(stage.name, "is there", *[""] * 5)
            continue
        parts = [span(stage.seconds[p]) if p in stage.seconds else "" for p in (START, EVERYWHERE)]
        alone = span(stage.seconds[ALONE]) if ALONE in stage.seconds else ""
        flops = f"{stage.flops / 1e12:,.0f}" if stage.flops >= 1e12 else ""
        table.add_row(
            stage.name, span(stage.total), *parts, alone, flops, decimal(int(stage.bytes))
        )
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    console.print(table)
    say(summary(plan))


def say(lines: Iterable[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False)


def summary(plan: Plan) -> list[str]:
    machines, counts = plan.machines, plan.counts
    device = machines.device
    what = f"{machines.devices} x {device.name}" if device is not machines.host else "this machine"
    cost = "" if plan.cost is None else f", {plan.cost:,.2f} at {plan.price:g} an hour"
    if plan.cost is not None and machines.devices > 1:
        cost += " and device"
    lines = [
        f"{span(plan.seconds)}{cost}, {decimal(int(plan.bytes))} of storage, on {what} with "
        f"{machines.cores} cores"
    ]
    if plan.slowest is not None:
        share = plan.slowest.total / max(plan.seconds, 1e-9)
        lines.append(f"slowest: {plan.slowest.name}, {share:.0%} of the time")
    lines.append(
        f"counts from {counts.source}: {counts.passages:,} passages, {counts.pairs:,} training "
        f"pairs of {counts.lengths.mean():.0f} tokens, {counts.blocks:,} token blocks, queries "
        + ", ".join(f"{split} {n:,}" for split, n in counts.queries.items())
    )
    lines.append(_basis(plan))
    if plan.config.transfer:
        lines.append(
            f"not counted: the collections of transfer ({', '.join(plan.config.transfer)})"
        )
    lines += [
        f"{model.name}: {model.layers} layers x {model.hidden}, {model.parameters / 1e6:.0f}M "
        f"parameters, {model.flops(round(plan.model.length)) / 1e9:.2f} GFLOP a pair"
        f"{' (' + model.source + ')' if model in plan.model.teachers else ''}"
        for model in [*plan.model.teachers, *plan.model.students.values()]
    ]
    return lines + memory_lines(plan)


def _basis(plan: Plan) -> str:
    device, host = plan.machines.device, plan.machines.host
    cpu = (
        "the cores as kdscale plan --calibrate measured this machine"
        if host.measured
        else "the cores ASSUMED, not measured (kdscale plan --calibrate measures this machine)"
    )
    if plan.machines.devices and device.name != "cpu":
        assumed = ", ".join(f"{share:.0%} of its peak in {what}" for what, share in
                            (("a forward pass", UTILISATION["forward"]),
                             ("training", UTILISATION["training"])))  # fmt: skip
        return f"{device.name} of its maker's sheet, ASSUMED to reach {assumed}; {cpu}"
    return f"rates: {cpu}"


def memory_lines(plan: Plan) -> list[str]:
    """Where a training step may not fit the device."""
    config, lines = plan.config, []
    trained = [
        (model, teacher.train)
        for model, teacher in zip(plan.model.teachers, config.teachers, strict=True)
    ]
    trained += [(model, config.ranker.train) for model in plan.model.students.values()]
    for model, train in trained:
        tokens = train.micro_tokens
        wide = 1 if train.precision == "bf16" else 2
        held = model.parameters * STATE_BYTES
        held += tokens * model.layers * model.hidden * ACTIVATION_BYTES * wide
        if held > plan.machines.device.memory:
            lines.append(
                f"{model.name}: a step of {tokens:,} tokens holds about {decimal(int(held))}, "
                f"more than the {decimal(int(plan.machines.device.memory))} of the device; lower "
                "train.micro_tokens"
            )
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    counts, machines = plan.counts, plan.machines
    return {
        "seconds": plan.seconds,
        "cost": plan.cost,
        "bytes": plan.bytes,
        "slowest": plan.slowest and plan.slowest.name,
        "device": machines.device.name,
        "devices": machines.devices,
        "cores": machines.cores,
        "measured": machines.device.measured,
        "assumed_utilisation": None if machines.device.name == "cpu" else UTILISATION,
        "counts": {
            "source": counts.source,
            "passages": counts.passages,
            "pairs": counts.pairs,
            "pair_tokens": float(counts.lengths.mean()),
            "blocks": counts.blocks,
            "queries": counts.queries,
        },
        "stages": [
            {
                "step": stage.name,
                "stage": stage.stage,
                "cached": stage.cached,
                "seconds": stage.total,
                "parts": stage.seconds,
                "flops": stage.flops,
                "bytes": stage.bytes,
            }
            for stage in plan.stages
        ],
    }
