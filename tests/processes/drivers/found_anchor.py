"""`dpdmd.train`; $FOUND gets a line with the rank, and K when the training begins."""

import os
import sys

from dpdmd import train
from dpdmd.training.trainer import Trainer

run = Trainer.train


def recorded(trainer: Trainer) -> None:
    with open(os.environ["FOUND"], "a") as found:
        found.write(f"{os.environ['RANK']} {trainer.config.method.k_anchor}\n")
    run(trainer)


Trainer.train = recorded
sys.exit(train.main(sys.argv[1:]))
