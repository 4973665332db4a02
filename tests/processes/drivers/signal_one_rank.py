"""Run `dpdmd.train`, with a SIGTERM to rank 1 alone in its third fake-score update."""

import os
import signal
import sys

from dpdmd import train
from dpdmd.methods import updates

healthy = updates.fake_score_loss


def terminated(run, batch):
    if batch.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return healthy(run, batch)


updates.fake_score_loss = terminated
sys.exit(train.main(sys.argv[1:]))
