"""With `--bf16` every product of a training cycle is in bf16, and without it in fp32."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpdmd import config
from dpdmd.training import preflight
from dpdmd.training.trainer import Trainer

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "scaled_dot_product", "einsum")


class Products(TorchDispatchMode):
    """The types of the factors of every matrix product, convolution and attention, backward passes included."""

    def __init__(self):
        super().__init__()
        self.factors: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.lstrip("_")
        if name in PRODUCTS or name.startswith("scaled_dot_product"):
            factors = [a for a in args[:3] if isinstance(a, torch.Tensor) and a.is_floating_point() and a.ndim > 1]
            self.factors += [(name, factor.dtype) for factor in factors]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("flag", "dtype"), [("--bf16", torch.bfloat16), ("--no-bf16", torch.float32)])
def test_every_product_of_a_cycle_is_in_the_compute_type(short_run, tmp_path, flag, dtype):
    """So TF32 cannot speed up anything under `--bf16`: neither the networks, nor text encoders and decoder."""
    trainer = Trainer(preflight.check(config.parse([*short_run, flag, "--run_dir", str(tmp_path / "run")])))
    with Products() as products:
        for step in (0, 5):  # a fake-score update and a student update, which decodes images
            trainer.take_step(step)
        trainer.decoder.decode(torch.zeros(1, *trainer.run.latent_shapes[0]))
    names = {name for name, _ in products.factors}
    assert {"addmm", "mm", "convolution", "convolution_backward"} <= names
    assert any(name.startswith("scaled_dot_product") for name in names)
    assert {found for _, found in products.factors} == {dtype}
