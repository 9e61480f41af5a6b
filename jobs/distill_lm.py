"""Ray job: distil a student language model for each student shape."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("distill-lm"))
