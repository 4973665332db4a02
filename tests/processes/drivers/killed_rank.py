"""Run a program and kill its rank $KILLED with SIGKILL.

A training is killed in its fourth step, while rank 0 slowly writes a checkpoint; `test_preference.py` when it generates
images. The launcher's SIGTERM comes while the other rank prepares its message.
"""

import os
import runpy
import signal
import sys
import time

from dpdmd import train
from dpdmd.distributed import collectives
from dpdmd.methods import updates
from dpdmd.sampling.sampler import Sampler
from dpdmd.training import checkpoint


def killed(healthy, reached):
    def call(*arguments, **options):
        if os.environ["RANK"] == os.environ["KILLED"] and reached(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return healthy(*arguments, **options)

    return call


def slow(*arguments, **options):
    time.sleep(2)
    return save(*arguments, **options)


def terminated(error):
    os.kill(os.getpid(), signal.SIGTERM)
    return lost_peer(error)


save, checkpoint.save = checkpoint.save, slow
lost_peer, collectives.lost_peer_message = collectives.lost_peer_message, terminated
updates.fake_score_loss = killed(updates.fake_score_loss, lambda run, batch: batch.step == 3)
Sampler.images = killed(Sampler.images, lambda *_: True)
if sys.argv[1] == "train":
    sys.exit(train.main(sys.argv[2:]))
# The launcher's SIGTERM would come before the other rank waits for this one.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.exit(runpy.run_path(sys.argv[1])["PROGRAM"].main(sys.argv[2:]))
