"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting"
    )
