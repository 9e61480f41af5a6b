"""Ray jobs: one entry point a stage, `python -m jobs.STAGE CONFIG`, which `kdscale submit` runs.

A job runs on the cluster that started it, whatever address the config names.
"""

import sys

from kdscale.cli import main


def run_stage(stage: str) -> int:
    """Run a `kdscale` command with this process's arguments; its exit code."""
    return main([stage, *sys.argv[1:], "--set", "cluster.address=auto"])
