"""`dpdmd.train` as a program, interrupted twice in its third fake turn."""

import os
import signal
import sys

from dpdmd import train
from dpdmd.methods import updates
from dpdmd.utils import signals

healthy = updates.fake_turn


def interrupted(run, batch):
    if batch.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    return healthy(run, batch)


updates.fake_turn = interrupted
signals.answer("dpdmd.train")
sys.exit(signals.done(train.main(sys.argv[1:])))
