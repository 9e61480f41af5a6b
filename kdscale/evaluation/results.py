"""The results of an evaluation as rows, and the rows as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from kdscale.config import by_collection
from kdscale.errors import KdscaleError
from kdscale.paths import user_path
from kdscale.store import open_store, split_artifact
from kdscale.store.artifact import MANIFEST, parse_manifest, verify_files

EVALUATIONS = "evaluations"
SYSTEMS = "systems.json"
TESTED = ("p", "p_holm", "noninferior_p", "noninferior_p_holm", "noninferior")


def load_results(uri: str) -> list[dict[str, Any]]:
    """A row a system, from the newest evaluation of a store, or from the evaluation at `uri`.

    A row has: system, strategy, student, parameters, bytes, flops_per_pair; "SPLIT MEASURE" for
    every split and measure; latency_ms and latency_p95_ms (tokenise and forward, a query's
    candidates); speedup (over the teacher); and for every split, of its primary measure against
    the baseline, "SPLIT " and each of TESTED. None where a value does not apply. Raises
    KdscaleError where there is no evaluation.
    """
    systems, settings = load_systems(uri)
    return [_row(system, settings["primary"]) for system in systems]


def load_systems(uri: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """systems.json of the evaluation that `load_results` takes, and its `evaluate` settings."""
    directory, manifest = _find(uri)
    systems = json.loads((directory / SYSTEMS).read_text(encoding="utf-8"))
    return systems, manifest["config"]["evaluate"]


def _find(uri: str) -> tuple[Path, dict[str, Any]]:
    """A directory with the evaluation's files, every digest checked, and its manifest."""
    pulled = user_path(uri, "the store")
    if (pulled / SYSTEMS).is_file() and (pulled / MANIFEST).is_file():
        manifest = parse_manifest((pulled / MANIFEST).read_bytes(), str(pulled / MANIFEST))
        verify_files(pulled, manifest)
        return pulled, manifest
    if uri.rstrip("/").split("/")[-2:-1] == [EVALUATIONS]:
        store, kind, key = split_artifact(uri)
        store.preflight(writing=False)
        evaluation = store.find(kind, key)
    else:
        store = open_store(uri)
        store.preflight(writing=False)
        evaluation = next(iter(store.list(EVALUATIONS)), None)
    if evaluation is None:
        raise KdscaleError(
            f"no evaluation in {uri}; make one with: kdscale evaluate CONFIG (or give what "
            "storage.uri of the config names)"
        )
    return evaluation.path, evaluation.manifest


def _row(system: dict[str, Any], primary: Any) -> dict[str, Any]:
    """primary: the setting, which may be a mapping."""
    total = (system["latency"] or {}).get("total_ms", {})
    row = {k: system[k] for k in ("system", "strategy", "student", "parameters", "bytes")}
    row["flops_per_pair"] = system["flops_per_pair"]
    for split, measures in system["measures"].items():
        row |= {f"{split} {measure}": value for measure, value in measures.items()}
    row["latency_ms"], row["latency_p95_ms"] = total.get("median"), total.get("p95")
    row["speedup"] = system["speedup"]
    for split in system["measures"]:
        test = system["tests"].get(split, {}).get(by_collection(primary, split), {})
        row |= {f"{split} {name}": test.get(name) for name in TESTED}
    return row


def format_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False)


def format_csv(rows: list[dict[str, Any]]) -> str:
    """With a header line; an empty field where a value does not apply."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")
