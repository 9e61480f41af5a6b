"""Ray job: score every training pair with the teacher."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("score"))
