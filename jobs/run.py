"""Ray job: the whole experiment of a config."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("run"))
