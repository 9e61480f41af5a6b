"""Ray job: train the student rankers, every strategy and the baseline."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("distill-ranker"))
