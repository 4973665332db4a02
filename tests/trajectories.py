"""What a run recorded and what its last checkpoint holds, compared with those of another run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpdmd.run_folder import LATEST, RunFolder

# fp32 keeps 7 digits. In the first clipped updates of 1e-3, AdamW divides by |g|: if the sign of a gradient near 0
# depends on the last digit, its weight moves by up to 2e-3 per step. A wrong average or norm moves all weights.
LOSS, EVALUATION, WEIGHT_MEAN, WEIGHT_MAX = 1e-4, 1e-3, 1e-6, 5e-3
CODES = 1e-2  # share of 8-bit numbers that rounding may move to the next code
MEASURED = {"seconds", "samples_per_second", "memory_gb"}


def records(run: Path) -> list[dict]:
    """Return metrics.jsonl without times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def state(run: Path) -> dict[str, dict[str, Tensor]]:
    """Return file -> name -> tensor of the last checkpoint: exports, trained networks and optimizers."""
    folder = RunFolder.of(run).latest()
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def assert_equal_bits(run: Path, other: Path) -> None:
    """Assert that both runs ended in the same bytes."""
    ours, theirs = state(run), state(other)
    assert ours.keys() == theirs.keys()
    for file, tensors in theirs.items():
        assert ours[file].keys() == tensors.keys()
        assert all(torch.equal(ours[file][name], value) for name, value in tensors.items()), file


def assert_one_trajectory(run: Path, other: Path) -> None:
    """Assert that all records and tensors of both runs differ by the order of fp32 sums alone."""
    for line, expected in zip(records(run), records(other), strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            tolerance = EVALUATION if name.startswith("eval") else LOSS
            near = pytest.approx(value, rel=tolerance, abs=1e-6) if isinstance(value, float) else value
            assert line[name] == near, name
    ours, theirs = state(run), state(other)
    assert ours.keys() == theirs.keys()
    for file, tensors in theirs.items():
        assert {name: value.shape for name, value in ours[file].items()} == {n: v.shape for n, v in tensors.items()}
        codes = [name for name, value in tensors.items() if value.dtype == torch.uint8]  # of moments in 8 bits
        different = [(ours[file][name] != tensors[name]).flatten().float() for name in codes]
        assert not codes or torch.cat(different).mean() <= CODES, file
        numbers = [(ours[file][name], value) for name, value in tensors.items() if name not in codes]
        difference = torch.cat([(our - their).abs().flatten() for our, their in numbers])
        assert difference.mean() <= WEIGHT_MEAN and difference.max() <= WEIGHT_MAX, file


def copy_until(run: Path, step: int, to: Path) -> None:
    """Copy a run as if its checkpoint of `step` were its last."""
    shutil.copytree(run, to, symlinks=True)
    folder = RunFolder.of(to)
    for path in folder.checkpoints():
        if path != folder.checkpoint(step):
            shutil.rmtree(path)
    folder.point(LATEST, folder.checkpoint(step))
