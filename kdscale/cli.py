"""The command line. What is heavy is imported when a command needs it."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import signal
import sys

from kdscale import __version__
from kdscale.commands import adapt, advise, doctor, export, plan, rank, run, store, sweep
from kdscale.errors import KdscaleError
from kdscale.plaintext import plain_where_needed


def main(argv: list[str] | None = None) -> int:
    # Python's last collection walks all objects of torch and Ray, for seconds on a busy machine.
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        plain_where_needed(stream)
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    # A job manager stops a process with SIGTERM: clean up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        return args.run(args)
    except KdscaleError as error:
        print(f"kdscale: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kdscale: stopped; finished stages are kept, run again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdscale",
        description="Distil a BERT cross-encoder ranker into a student about nine times faster.",
    )
    parser.add_argument("--version", action="version", version=f"kdscale {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # In the order of --help.
    for group in (run, rank, sweep, export, store, advise, plan, adapt, doctor):
        group.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
