"""The compute type and the arithmetic of CUDA devices: fp32 means fp32."""

from collections.abc import Iterator

import pytest
import torch

from dpdmd.utils import precision


@pytest.fixture
def default_switches() -> Iterator[None]:
    """torch's own, during the test and afterwards."""
    matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = matmul, conv
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_does_not_round_fp32_products(bf16, default_switches):
    """torch's default would, in convolutions; the switches of a CPU stay as they are."""
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision
    assert precision.set_up(bf16) == precision.compute_dtype(bf16) == (torch.bfloat16 if bf16 else torch.float32)
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.benchmark is bf16
    assert (torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision) == before


@pytest.mark.parametrize("name", ["NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"])
def test_a_variable_that_forces_tf32_is_named(default_switches, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    precision.set_up(bf16=False)
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"^{name} is 1, but fp32 means fp32 here, .*: unset it$"):
        precision.set_up(bf16=False)
