"""The device of a process, and the process group's patience with rank 0's work on files."""

from types import SimpleNamespace

import pytest
import torch

from dpdmd.distributed.launch_env import uses_gpu
from dpdmd.distributed.topology import LONGEST_FILE_WORK, local_device, start_accelerator


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


def test_ranks_wait_longer_for_files_than_nccl_would_and_send_no_buffers(monkeypatch):
    """The default of accelerate, which is NCCL's, is ten minutes; accelerate passes on what differs."""
    started = {}

    def start(**options):
        started.update(options)
        return SimpleNamespace(num_processes=1)

    monkeypatch.setattr("accelerate.Accelerator", start)
    start_accelerator()
    assert [handler.to_kwargs() for handler in started["kwargs_handlers"]] == [
        {"timeout": LONGEST_FILE_WORK},
        {"broadcast_buffers": False},
    ]


def test_a_busy_port_is_wrong_input_of_the_launch(monkeypatch):
    """And no lost process, for which a root program would take a RuntimeError of its work."""

    def start(**_):
        raise torch.distributed.DistNetworkError("The server socket has failed to listen on any address. EADDRINUSE")

    monkeypatch.setattr("accelerate.Accelerator", start)
    with pytest.raises(ValueError, match=r"^the launch: accelerate does not start \(DistNetworkError: The server so"):
        start_accelerator()
