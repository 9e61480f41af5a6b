#!/usr/bin/env python3
"""What spreading teacher scoring over workers costs: Ray Data against one process.

    .venv/bin/python benchmarks/scaling.py --beir DIR -o benchmarks/results/scaling.json

- The same blocks of pairs, scored by one process with a thread a CPU, and by Ray Data with a
  one-thread worker a CPU, in turns. Pairs a second are counted from the first block of each on, and
  what came before it is told apart as start-up. All scores must be those of the first run (1e-4).
- Workers that sleep for as long as a block was measured to take, 2 to 16 of them: how much of their
  time they are at work. Nothing competes for the CPUs, so what is lost is the driver's.
- 1,000 and 10,000 blocks of nothing: the driver's time and memory a block. A driver that needs d
  seconds a block keeps up with s / d workers whose blocks take s seconds; it is what breaks first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from grid import exit_with
from rich.console import Console
from rich.table import Table
from sidebyside import circumstances, finish

from kdscale.cluster.machine import cpus
from kdscale.cluster.placement import Plan
from kdscale.cluster.session import ray_session
from kdscale.config import Cluster
from kdscale.data.dataset import Dataset, Tokens
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, TOKENS
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.experiment.settings import ScoreSettings
from kdscale.models.pretrained import load_encoder, resolve_model
from kdscale.models.ranker import BATCH_TOKENS, build_ranker, save_ranker
from kdscale.progress import Reporter
from kdscale.stages.score import FORWARDS_PER_BLOCK, map_blocks, score_here, score_on_ray
from kdscale.stages.score_blocks import (
    BLOCK_FILE,
    block_name,
    collect_scores,
    pair_lengths,
    plan_blocks,
    publish_block,
    read_blocks,
)
from kdscale.store import LocalWorkspace, Store, Workspace, open_store
from kdscale.store.artifact import build_manifest, list_files

HERE = Path(__file__).parent
TARGET, SAME = 0.95, 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beir", type=Path, required=True, metavar="DIR", help="the data")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3, help="of each way")
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=8, help="blocks of a sleeping worker")
    parser.add_argument(
        "--blocks", nargs=2, type=int, default=[1_000, 10_000], metavar=("FEW", "MANY")
    )
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    reporter = Reporter()
    cores = cpus()
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory(prefix="kdscale-scaling-") as scratch:
        blocks, actor = make_work(args.beir, args.pairs, Path(scratch), reporter)
        if len(blocks) < 3 * cores:
            raise KdscaleError(f"{len(blocks)} blocks are too few to time: give more --pairs")
        ways = real(blocks, actor, cores, args.runs, Path(scratch), reporter)
        ray_way = ways["Ray Data"]
        pairs = sum(b.num_rows for b in blocks)
        block_s = cores * pairs / len(blocks) / float(np.median(ray_way["pairs_per_s"]))
        asleep = [
            sleeping(count, args.rounds, block_s, Path(scratch), reporter) for count in args.workers
        ]
        empty = [nothing(count, Path(scratch), reporter) for count in args.blocks]
    fewer, more = min(empty, key=_blocks), max(empty, key=_blocks)
    driver_s = (more["seconds"] - fewer["seconds"]) / (more["blocks"] - fewer["blocks"])
    one = float(np.median(ways["one process"]["pairs_per_s"]))
    result = {
        "circumstances": circumstances(cores),
        "pairs": pairs,
        "blocks": len(blocks),
        "object_store_bytes_a_pair": round(sum(b.nbytes for b in blocks) / pairs, 1),
        "ways": ways,
        "ratio": round(float(np.median(ray_way["pairs_per_s"])) / one, 3),
        "block_seconds": round(block_s, 2),
        "asleep": asleep,
        "empty": empty,
        "driver_s_a_block": round(driver_s, 5),
        "workers_a_driver_keeps_up_with": int(block_s / driver_s),
    }
    show(result)
    finish(result, args.output)
    return 0


def _blocks(row: dict[str, Any]) -> int:
    return row["blocks"]


def make_work(
    beir: Path, pairs: int, folder: Path, reporter: Reporter
) -> tuple[list[pa.Table], dict[str, Any]]:
    """Blocks as the stage cuts them, and the settings of a worker: MiniLM with a random head."""
    queries = -(-pairs // 5)  # a positive and four negatives
    settings = [f"prepare.max_queries={{train: {queries}, dev: 1, test: 1}}"]
    config = load_config(
        HERE / "strategies.yaml",
        [f"source.path={beir.resolve()}", f"storage.uri={folder / 'store'}", *settings],
    )
    store = open_store(config.storage.uri)
    outcomes = run_steps(config, store, [DATASET, TOKENS], reporter)
    dataset, tokens = (Dataset(outcomes[0].artifact.path), Tokens(outcomes[1].artifact.path))
    ranker = build_ranker(load_encoder(resolve_model("minilm", None), None), 0.0, 0)
    teacher = commit_ranker(store, ranker, tokens)
    table = dataset.pairs().slice(0, pairs)
    tokens_a_block = FORWARDS_PER_BLOCK["cpu"] * BATCH_TOKENS["cpu"]
    blocks = list(plan_blocks(table, pair_lengths(table, tokens), tokens_a_block))
    return blocks, {
        "teacher": teacher, "tokens": outcomes[1].artifact.ref(),
        "settings": ScoreSettings("fp32", BATCH_TOKENS["cpu"], shards=1), "device": "cpu",
        "pids": pc.unique(table["pid"]),
    }  # fmt: skip


def commit_ranker(store: Store, ranker: Any, tokens: Tokens) -> dict[str, str]:
    with store.staging("teachers", "random") as out:
        save_ranker(ranker, tokens.encoder(), out)
        manifest = build_manifest(
            kind="teachers", stage="benchmark", config={}, inputs={}, files=list_files(out),
            facts={}, created="", version="0",
        )  # fmt: skip
        store.commit(out, "teachers", "random", manifest)
    return store.find("teachers", "random").ref()


def real(
    blocks: list[pa.Table], actor: dict[str, Any], cpus: int, runs: int, folder: Path,
    reporter: Reporter,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """Pairs a second and seconds of start-up of each way, by run."""
    cluster = Cluster(scorers=cpus)  # a CPU each, less what Ray needs
    sizes = {block_name(b["pair_id"]): b.num_rows for b in blocks}
    ways = {name: {"pairs_per_s": [], "start_s": []} for name in ("one process", "Ray Data")}
    first = None
    with ray_session(cluster, reporter):  # Ray itself is up for both
        for run in range(runs):
            order = [("one process", score_here, 1), ("Ray Data", score_on_ray, cpus)]
            for name, score, workers in order[:: 1 if run % 2 else -1]:
                reporter.info(f"{name}, run {run + 1} of {runs}: {len(blocks)} blocks")
                workspace = LocalWorkspace(folder / f"work-{run}-{workers}")
                began = time.time()
                with score(blocks, {**actor, "workspace": workspace}, cluster, reporter) as names:
                    done = list(names)
                scores = collect_scores(sum(sizes.values()), read_blocks(workspace, done).values())
                first = scores if first is None else first
                if not np.allclose(scores, first, rtol=0, atol=SAME):
                    raise KdscaleError(f"{name}, run {run + 1}: not the scores of the first run")
                # When a block was published: the driver may be told of several at once.
                ends = sorted(
                    ((workspace.fetch(name) / BLOCK_FILE).stat().st_mtime, sizes[name])
                    for name in done
                )
                rate, start = pace(ends, began, workers)
                ways[name]["pairs_per_s"].append(round(rate, 2))
                ways[name]["start_s"].append(round(start, 2))
    return ways


def pace(ends: list[tuple[float, int]], began: float, workers: int) -> tuple[float, float]:
    """(pairs a second from the first block of each worker on, seconds before those began).

    ends: (when, pairs) of each block."""
    first = ends[workers - 1][0]
    rate = sum(pairs for _, pairs in ends[workers:]) / (ends[-1][0] - first)
    return rate, first - began - sum(pairs for _, pairs in ends[:workers]) / rate


class Sleeper:
    """In the teacher's place: publishes as it does, and computes nothing. When it began and ended
    a block stands in a file of its own."""

    def __init__(self, workspace: Workspace, seconds: float, log: str):
        self._workspace, self._seconds = workspace, seconds
        self._log = Path(log, f"{os.getpid()}.txt")

    def __call__(self, block: pa.Table) -> pa.Table:
        began = time.time()
        time.sleep(self._seconds)
        publish_block(self._workspace, block, np.zeros(block.num_rows, dtype=np.float32))
        with self._log.open("a") as log:
            log.write(f"{began} {time.time()}\n")
        return pa.table({"name": [block_name(block["pair_id"])]})


class Nothing:
    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.table({"name": [block_name(block["pair_id"])]})


def small_blocks(count: int) -> list[pa.Table]:
    return [pa.table({"pair_id": [i], "qid": [f"q{i}"], "pid": [f"p{i}"]}) for i in range(count)]


def sleeping(
    workers: int, rounds: int, seconds: float, folder: Path, reporter: Reporter
) -> dict[str, Any]:
    """The share of their time, from the begin of each one's first block to the end of its last,
    that the workers sleep."""
    reporter.info(f"{workers} workers that sleep {seconds:.1f} s a block")
    log = folder / f"asleep-{workers}-log"
    log.mkdir()
    settings = {
        "workspace": LocalWorkspace(folder / f"asleep-{workers}"),
        "seconds": seconds,
        "log": str(log),
    }
    share = cpus() / workers / 2
    blocks = small_blocks(workers * rounds)
    with ray_session(Cluster(), reporter):
        list(map_blocks(blocks, Plan(workers, share), Sleeper, settings))
    of_workers = [np.loadtxt(path, ndmin=2) for path in sorted(log.iterdir())]
    there = sum(times[-1, 1] - times[0, 0] for times in of_workers)
    return {
        "workers": len(of_workers),
        "efficiency": round(len(blocks) * seconds / there, 4),
        "apart_s": round(float(np.ptp([times[0, 0] for times in of_workers])), 1),
    }


def nothing(count: int, folder: Path, reporter: Reporter) -> dict[str, Any]:
    reporter.info(f"{count:,} blocks of nothing")
    driver, before = psutil.Process(), psutil.Process().memory_info().rss
    most, began = before, time.monotonic()
    blocks = small_blocks(count)
    with ray_session(Cluster(), reporter):
        for done in throttled(map_blocks(blocks, Plan(2, 0.5), Nothing, {})):
            most = max(most, driver.memory_info().rss)
            reporter.info(f"  {done:,} done")
    return {
        "blocks": count,
        "seconds": round(time.monotonic() - began, 2),
        "driver_bytes": most - before,
    }


def throttled(names: Iterator[str], every: int = 500) -> Iterator[int]:
    done = 0
    for done, _ in enumerate(names, 1):
        if done % every == 0:
            yield done
    yield done


def show(result: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "pairs/s", "from", "to", "start-up s"):
        table.add_column(title, justify="right" if title else "left")
    for name, way in result["ways"].items():
        rates = way["pairs_per_s"]
        figures = (
            float(np.median(rates)),
            min(rates),
            max(rates),
            float(np.median(way["start_s"])),
        )
        table.add_row(name, *(f"{value:,.1f}" for value in figures))
    Console(width=100).print(table)
    said = "at least" if result["ratio"] >= TARGET else "below"
    print(f"Ray Data has {result['ratio']:.1%} of one process: {said} {TARGET:.0%}")
    print(f"object store: {result['object_store_bytes_a_pair']:.0f} bytes a pair")
    for row in result["asleep"]:
        print(
            f"{row['workers']} sleeping workers: {row['efficiency']:.1%} of their time at work; "
            f"the last began {row['apart_s']:.0f} s after the first"
        )
    for row in result["empty"]:
        print(
            f"{row['blocks']:,} blocks of nothing: {row['seconds']:.1f} s, "
            f"{row['driver_bytes'] / 1e6:,.0f} MB more in the driver"
        )
    print(
        f"{1e3 * result['driver_s_a_block']:.1f} ms of the driver a further block; of blocks of "
        f"{result['block_seconds']:.1f} s, one driver keeps up with about "
        f"{result['workers_a_driver_keeps_up_with']:,} workers"
    )


if __name__ == "__main__":
    exit_with(main)
