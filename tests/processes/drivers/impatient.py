"""Run `dpdmd.train` as a program that gets two SIGINTs in its third fake-score update."""

import os
import signal
import sys

from dpdmd import train
from dpdmd.methods import updates
from dpdmd.utils import signals

healthy = updates.fake_score_loss


def interrupted(run, batch):
    if batch.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    return healthy(run, batch)


updates.fake_score_loss = interrupted
signals.install_exit_handlers("dpdmd.train")
sys.exit(signals.final_status(train.main(sys.argv[1:])))
