"""The device of a process, and the process group's patience with rank 0's work on files."""

import pytest
import torch

from dpdmd.distributed.launch_env import uses_gpu
from dpdmd.distributed.topology import LONGEST_FILE_WORK, group_options, local_device


@pytest.mark.parametrize(
    ("variable", "value", "on_gpu"),
    [
        ("ACCELERATE_USE_CPU", "true", False),
        ("ACCELERATE_USE_CPU", "false", True),
        ("ACCELERATE_TORCH_DEVICE", "cpu", False),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", True),
    ],
)
def test_accelerates_variables_choose_the_device(monkeypatch, variable, value, on_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert uses_gpu() and local_device() == torch.device("cuda", 0)
    monkeypatch.setenv(variable, value)
    assert uses_gpu() == on_gpu and local_device().type == ("cuda" if on_gpu else "cpu")


def test_ranks_wait_longer_for_files_than_nccl_would():
    """The default of accelerate, which is NCCL's, is ten minutes; accelerate passes on what differs."""
    assert group_options().to_kwargs() == {"timeout": LONGEST_FILE_WORK}
