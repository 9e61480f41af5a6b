"""Ray job: rankings, measures, significance, latency."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("evaluate"))
