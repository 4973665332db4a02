"""Run `test_preference.py`, with too little memory on rank 1 alone when it generates images."""

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
time.sleep(2)  # the launcher kills the other rank as soon as one has ended
sys.exit(status)
