"""Ray job: fine-tune the teacher ranker."""

import sys

from jobs import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("finetune"))
