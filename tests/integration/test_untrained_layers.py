"""A family whose network has parameters that no loss reaches, and layers that must not get an adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd import train
from dpdmd.config import Config
from dpdmd.methods.networks import load_networks, trained_parameters
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sd35.family import SD35
from dpdmd.training import checkpoint

FROZEN = ("transformer_blocks.0.attn.to_add_out.weight", "transformer_blocks.1.ff.net.2.bias")
EXCLUDED = ("transformer_blocks.0.attn.to_q", "ff_context.net.2")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def particular(monkeypatch):
    """Give SD3.5 frozen parameters and layers without adapters."""
    layout = replace(LAYOUTS["sd35"], frozen=lambda config: FROZEN, lora_excluded=lambda config: EXCLUDED)
    monkeypatch.setitem(LAYOUTS, "sd35", layout)
    monkeypatch.setattr(SD35, "layout", layout)
    return layout


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "transformer" / WEIGHTS)


@pytest.mark.parametrize("more", [[], ["--ema_decay", "0.5"]], ids=["plain", "average"])
def test_frozen_parameters_stay_the_teachers_and_a_run_resumes(particular, short_run, tiny_pipeline, tmp_path, more):
    """Six updates equal four plus two, to the bit, though the optimizer has no state of the frozen parameters."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = [*short_run, *more, "--per_train_fake_num", "1", "--vis_every", "0", "--ckpt_every", "4"]
    assert train.main([*command, "--run_dir", str(whole), "--max_steps", "6"]) == 0
    assert train.main([*command, "--run_dir", str(parts), "--max_steps", "4"]) == 0
    resume = ["--max_steps", "6", "--resume_from_checkpoint", "latest"]
    assert train.main([*command, "--run_dir", str(parts), *resume]) == 0
    ours, theirs, teacher = (
        weights(path) for path in (*(run / "ckpts/latest/student" for run in (whole, parts)), tiny_pipeline)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in teacher)
    same = {name for name in teacher if torch.equal(ours[name], teacher[name])}
    assert set(FROZEN) <= same and len(same) < len(teacher) / 4
    moments = load_file(whole / "ckpts" / "latest" / "state" / "optimizer_student.safetensors")
    assert not any(name.startswith(FROZEN) for name in moments)


def test_frozen_parameters_have_no_gradient_and_count_as_untrained(particular, tiny_pipeline):
    config = Config()
    config.model.teacher_id = config.model.student_id = config.model.fake_id = str(tiny_pipeline)
    networks = load_networks(config, SD35(torch.device("cpu"), torch.float32))
    shapes = particular.weight_shapes(tiny_pipeline, "transformer")
    frozen = sum(torch.Size(shapes[name]).numel() for name in FROZEN)
    for network in (networks.student, networks.fake):
        assert {name for name, p in network.named_parameters() if not p.requires_grad} == set(FROZEN)
        assert sum(p.numel() for p in trained_parameters(network)) == particular.count_trained(tiny_pipeline)
    assert (
        replace(particular, frozen=lambda _: ()).count_trained(tiny_pipeline)
        == particular.count_trained(tiny_pipeline) + frozen
    )
    whole = 4 * 2 * particular.count_parameters(tiny_pipeline) + 16 * particular.count_trained(tiny_pipeline)
    assert checkpoint.size_in_bytes(config) == whole


def test_excluded_layers_get_no_adapter(particular, tiny_pipeline):
    """The layers that the small files announce are those that peft adapts."""
    config = Config()
    config.model.teacher_id, config.model.lora_rank = str(tiny_pipeline), 2
    pair = adapters(config.model)
    announced = set(particular.adapted_layers(tiny_pipeline, pair.student.targets))
    networks = load_networks(config, SD35(torch.device("cpu"), torch.float32))
    found = {name.partition(".lora_")[0] for name, _ in networks.student.named_parameters()}
    whole = replace(particular, lora_excluded=lambda _: ())
    everything = set(whole.adapted_layers(tiny_pipeline, pair.student.targets))
    assert found == announced and len(everything - announced) == 1 + sum(
        "ff_context.net.2" in name for name in everything
    )
    assert not any(name.endswith(EXCLUDED) for name in announced)
