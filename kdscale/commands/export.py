"""`kdscale export`: a student as ONNX, in int8, pruned, with the corpus's vocabulary."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdscale.errors import KdscaleError

PARTS = ("heads", "ffn")


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    export = commands.add_parser(
        "export",
        help="a student as ONNX, in int8, pruned, with the corpus's vocabulary",
        description="Make a student smaller and faster, and measure what that costs it on the dev "
        "queries of its dataset.",
    )
    export.add_argument(
        "student", metavar="STUDENT", help="STORE/students/KEY, or a ranker's folder"
    )
    export.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="new, or empty"
    )
    export.add_argument("--onnx", action="store_true", help="write model.onnx")
    export.add_argument("--int8", action="store_true", help="its weights in int8")
    export.add_argument(
        "--prune",
        metavar="heads=S,ffn=S",
        help="shares of the heads and feed-forward neurons to drop",
    )
    export.add_argument(
        "--recovery-steps", type=int, default=300, metavar="N",
        help="of distillation after pruning, 16 queries each (default: 300)",
    )  # fmt: skip
    export.add_argument(
        "--trim-vocabulary", type=int, nargs="?", const=1, metavar="COUNT",
        help="keep only tokens that the dataset has so often (default: once)",
    )  # fmt: skip
    export.add_argument(
        "--data", metavar="URI", help="STORE or STORE/datasets/KEY (default: the student's own)"
    )
    export.add_argument(
        "--teacher", action="store_true",
        help="compare with the student's teacher, which has to read all candidates too",
    )  # fmt: skip
    export.add_argument("--force", action="store_true", help="take int8 whatever it loses")
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    shares = parse_shares(args.prune) if args.prune is not None else {}
    from kdscale.export.run import Wanted, export
    from kdscale.progress import Reporter

    reporter = Reporter()
    wanted = Wanted(
        onnx=args.onnx,
        int8=args.int8,
        **shares,
        min_count=args.trim_vocabulary,
        data=args.data,
        recovery_steps=args.recovery_steps,
        teacher=args.teacher,
        force=args.force,
    )
    export(args.student, args.output, wanted, reporter)
    reporter.info(f"written to {args.output}")
    return 0


def parse_shares(text: str) -> dict[str, float]:
    """ "heads=0.5,ffn=0.25" as numbers from 0. Raises KdscaleError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in PARTS or name in shares or not 0 <= share < float("inf"):
            raise KdscaleError(
                f"--prune: cannot read {part!r}; write shares to drop, like heads=0.5,ffn=0.25"
            )
        shares[name] = share
    return shares
