"""`test_preference.py`, whose rank 1 alone runs out of memory when it makes images."""

import os
import runpy
import sys
import time

import torch

from dpdmd.sampling.sampler import Sampler

healthy = Sampler.images


def starved(*arguments):
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    return healthy(*arguments)


Sampler.images = starved
status = runpy.run_path("test_preference.py")["PROGRAM"].main(sys.argv[1:])
time.sleep(2)  # the launcher kills the other as soon as one has ended
sys.exit(status)
