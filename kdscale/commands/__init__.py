"""The commands of `kdscale`, a file a group: parse, call, print. What is heavy is imported when
a command needs it, so that `kdscale --help` answers at once."""

from __future__ import annotations

import argparse


def add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one setting"
    )
