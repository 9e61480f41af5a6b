"""Ray job: the trials of a sweep file, begun or gone on with."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("sweep"))
