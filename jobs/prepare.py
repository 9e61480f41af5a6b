"""Ray job: from a source to passages, queries, candidates, training pairs and token blocks."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("prepare"))
