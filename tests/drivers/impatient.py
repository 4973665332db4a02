"""`dpdmd.train` as a program, interrupted twice in its third fake turn."""

import os
import signal
import sys

from dpdmd import interruption, methods, train

healthy = methods.fake_turn


def interrupted(run, batch):
    if batch.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    return healthy(run, batch)


methods.fake_turn = interrupted
interruption.answer("dpdmd.train")
sys.exit(interruption.done(train.main(sys.argv[1:])))
