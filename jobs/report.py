"""Ray job: the page and the table."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("report"))
