"""Ray job: the trials of a sweep file; with --resume those that are left."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("sweep"))
