"""`kdscale doctor`: check this machine, and a config, and say what to fix."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """commands: the subparsers of `kdscale`."""
    doctor = commands.add_parser(
        "doctor", help="check this machine, and a config, and say what to fix"
    )
    doctor.add_argument("config", type=Path, nargs="?", metavar="CONFIG")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from kdscale.doctor.run import run_checks
    from kdscale.experiment.load import load_config
    from kdscale.progress import Reporter

    config = load_config(args.config) if args.config else None
    checks = run_checks(config, Reporter())
    return 1 if any(c.status == "problem" for c in checks) else 0
