"""`python -m tests.stages.score_driver CALLS CONFIG`: the score stage, with a line in CALLS for
each block that an actor scores, and slowly enough to be killed in between."""

import sys
import time

from kdscale.cli import main
from kdscale.stages import score
from kdscale.stages.score_blocks import block_name

BLOCK_S = 0.3


class CountingActor(score.TeacherActor):
    calls = sys.argv[1] if __name__ == "__main__" else None

    def score(self, block):
        time.sleep(BLOCK_S)
        with open(self.calls, "a") as handle:  # one write, one line: actors may share the file
            handle.write(block_name(block["pair_id"]) + "\n")
        return super().score(block)


if __name__ == "__main__":
    score.TeacherActor = CountingActor
    sys.exit(main(["score", sys.argv[2]]))
