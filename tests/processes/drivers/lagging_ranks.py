"""Run fsdp_cpu.py with an optimizer that skips by itself, and a nan in rank 1's loss of the third step alone."""

import os
import runpy
from functools import partial
from pathlib import Path

import torch

from dpdmd.methods import updates
from dpdmd.methods.context import LossResult

healthy = updates.fake_score_loss


def poisoned(run, batch):
    result = healthy(run, batch)
    bad = batch.step == 2 and os.environ["RANK"] == "1"
    return LossResult(result.loss * float("nan"), result.metrics, result.latents) if bad else result


torch.optim.AdamW = partial(torch.optim.AdamW, fused=True)
updates.fake_score_loss = poisoned
runpy.run_path(str(Path(__file__).parent / "fsdp_cpu.py"))
