"""LoRA from the command line: runs, and the files that diffusers and ComfyUI read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd import export, train
from dpdmd.config import read_yaml
from dpdmd.models import lora
from dpdmd.models.lora_files import COMFYUI_WEIGHTS, LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import checkpoint

CPU = torch.device("cpu")
RANK, ALPHA = 2, 6.0
LORA_FLAGS = ["--lora_rank", str(RANK), "--lora_alpha", str(ALPHA)]


# Runs


@pytest.fixture(scope="module")
def lora_run(short_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of nine steps with adapters, with checkpoints at 5 and 9."""
    run = tmp_path_factory.mktemp("lora") / "run"
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    assert train.main([*command, "--run_dir", str(run), "--max_steps", "9", "--ckpt_every", "5"]) == 0
    return run


def final_state(run: Path, step: int = 9) -> dict[str, Tensor]:
    folder = run / "ckpts" / f"step_{step:06d}"
    files = [folder / "lora" / LORA_WEIGHTS, *sorted((folder / "state").glob("*.safetensors"))]
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize("extra", [[], ["--gradient_checkpointing"]], ids=["plain", "recomputed"])
def test_a_resumed_run_ends_in_the_same_bytes(lora_run, short_run, tmp_path, extra):
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    command += ["--run_dir", str(tmp_path / "run"), *extra]
    assert train.main([*command, "--max_steps", "5"]) == 0
    assert train.main([*command, "--max_steps", "9", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs = final_state(tmp_path / "run"), final_state(lora_run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_estimate_is_what_a_checkpoint_takes(lora_run, tiny_pipeline):
    taken = sum(path.stat().st_size for path in (lora_run / "ckpts" / "step_000009").rglob("*.safetensors"))
    estimate = checkpoint.size_in_bytes(read_yaml(lora_run / "config.yaml"))
    assert estimate == sum(value.numel() * value.element_size() for value in every_tensor(lora_run))
    assert taken > estimate  # the rest are headers, which count for adapters this small


def every_tensor(run: Path) -> list[Tensor]:
    """Return all tensors of the last checkpoint except AdamW's step counters and the alphas."""
    found = []
    for path in (run / "ckpts" / "step_000009").rglob("*.safetensors"):
        found += [value for value in load_file(path).values() if value.ndim > 0]
    return found


def test_two_processes_train_the_same_adapters(lora_run, short_run, run_processes, tmp_path):
    """Batch 1 on each of two processes equals batch 2 on one: each DDP wrapper averages its adapter's gradients."""
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    command += ["--batch_size", "1", "--run_dir", str(tmp_path / "run"), "--max_steps", "9"]
    run_processes(["-m", "dpdmd.train", *command])
    ours, theirs = final_state(tmp_path / "run"), final_state(lora_run)
    moments = [name for name in ours if "optimizer" in name]
    weights = [name for name in ours if "optimizer" not in name]
    assert moments and weights
    for name in weights:  # Adam's first steps have the size of the rate, 1e-2 an update, for any gradient
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)


# Files


def our_image(run: Path, base: Path | None = None) -> Tensor:
    sampler, encoder = load_sampler(run, CPU, base_model=base)
    return sampler.images(encoder.encode(["a red circle"]), [(0, 0)], seed=0)


def test_diffusers_loads_the_lora_and_makes_our_image(lora_run, tiny_pipeline):
    """alpha is three times the rank: without the file's metadata diffusers would assume that they are equal."""
    folder = lora_run / "ckpts" / "latest" / "lora"
    sampler, encoder = load_sampler(lora_run, CPU)
    text, pipe = encoder.encode(["a red circle"]), StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    eps = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    def theirs() -> Tensor:
        return pipe(
            prompt_embeds=text.context,
            pooled_prompt_embeds=text.pooled,
            latents=eps.clone(),
            num_inference_steps=2,
            guidance_scale=1.0,
            height=64,
            width=64,
            output_type="latent",
        ).images

    teacher = theirs()
    pipe.load_lora_weights(folder)
    student = sampler.latents(text, eps)
    torch.testing.assert_close(theirs(), student, rtol=1e-4, atol=1e-4)
    assert (teacher - student).abs().max() > 0.01


def test_comfyui_reads_the_same_change(lora_run):
    """B A alpha / rank of the file for ComfyUI is the change of each merged weight."""
    folder = lora_run / "ckpts" / "latest" / "lora"
    named, ours = load_file(folder / COMFYUI_WEIGHTS), load_file(folder / LORA_WEIGHTS)
    layers = {name.removesuffix(".alpha") for name in named if name.endswith(".alpha")}
    assert len(named) == 3 * len(layers) == len(ours) * 3 // 2
    assert all(layer.startswith("transformer.transformer_blocks.") for layer in layers)
    network = SD35(CPU, torch.float32).load_network(
        Path(read_sampling_defaults(folder, LAYOUTS["sd35"].defaults).base), torch.float32
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    SD35(CPU, torch.float32).load_lora(network, folder)
    after = lora.merged(network).state_dict()
    assert after.keys() == before.keys()
    changed = 0.0
    for layer in layers:
        change = named[f"{layer}.lora_B.weight"] @ named[f"{layer}.lora_A.weight"] * named[f"{layer}.alpha"] / RANK
        name = layer.removeprefix("transformer.") + ".weight"
        torch.testing.assert_close(after[name] - before[name], change, rtol=1e-4, atol=1e-6)
        changed = max(changed, change.abs().max().item())
    assert changed > 1e-3


def test_an_export_is_whole_and_makes_the_same_image(lora_run, tmp_path):
    assert export.main(["--model", str(lora_run), "--out", str(tmp_path / "whole")]) == 0
    torch.testing.assert_close(our_image(tmp_path / "whole"), our_image(lora_run), rtol=0, atol=1e-4)
    assert not any(path.is_symlink() for path in (tmp_path / "whole").rglob("*"))
    assert export.main(["--model", str(lora_run), "--out", str(tmp_path / "whole")]) == 2


def test_a_lora_that_is_not_finite_is_not_exported(lora_run, tmp_path, capsys):
    alone = Path(shutil.copytree(lora_run / "ckpts" / "latest" / "lora", tmp_path / "lora"))
    state = load_file(alone / LORA_WEIGHTS)
    next(value for name, value in state.items() if "lora_A" in name)[0, 0] = float("nan")
    save_file(state, alone / LORA_WEIGHTS)
    base = json.loads((alone / "dpdmd.json").read_text())["base"]
    assert export.main(["--model", str(alone), "--base_model", base, "--out", str(tmp_path / "whole")]) == 2
    assert "with the LoRA added is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "whole").exists()


def test_a_lora_folder_finds_its_base_or_is_given_it(lora_run, tiny_pipeline, tmp_path):
    alone = tmp_path / "lora"
    shutil.copytree(lora_run / "ckpts" / "latest" / "lora", alone)
    assert torch.equal(our_image(alone), our_image(lora_run))
    defaults = json.loads((alone / "dpdmd.json").read_text())
    (alone / "dpdmd.json").write_text(json.dumps({**defaults, "base": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="gone, which is not there; give --base_model"):
        load_sampler(alone, CPU)
    assert torch.equal(our_image(alone, tiny_pipeline), our_image(lora_run))
