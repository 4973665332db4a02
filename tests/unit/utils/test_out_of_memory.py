"""Errors of too little memory become one line; other errors stay what they are."""

import pytest
import torch

from dpdmd.utils import out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20.00 GiB.\nmore")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CUDA, str(CUDA)), (CPU, str(CPU)), (MemoryError(), "MemoryError"), (MemoryError("array"), "array")],
)
def test_one_line_with_advice(error, reason):
    with pytest.raises(MemoryError) as raised, out_of_memory.explained("lower --batch_size"):
        raise error
    assert str(raised.value) == f"out of memory; lower --batch_size ({reason.splitlines()[0]})"


def test_another_error_passes():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory.explained("lower --batch_size"):
        raise RuntimeError("shapes differ")
