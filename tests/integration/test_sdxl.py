"""Runs of the family SDXL from the command line, on a small random pipeline, and their exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from small_distillation import method_flags

from dpdmd import doctor, export, generate, train
from dpdmd.config import Config
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods import registry
from dpdmd.models.comfyui_workflow import WORKFLOW
from dpdmd.models.lora_files import COMFYUI_WEIGHTS, LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.sdxl.family import SDXL
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import checkpoint
from dpdmd.utils.rng import normal_per_sample

CPU = torch.device("cpu")
LAYOUT = LAYOUTS["sdxl"]
PROMPTS = ["a red circle", "a large square on a white background"]
SHAPE = (4, 8, 8)


@pytest.fixture
def flags(tiny_sdxl: Path, short_run: list[str]) -> list[str]:
    """Return the command line of a short run, without a run folder."""
    prompts = short_run[short_run.index("--prompt_txt") + 1]
    return [
        *("--family", "sdxl", "--teacher_id", str(tiny_sdxl), "--prompt_txt", prompts, "--height", "64"),
        *("--width", "64", "--teacher_infer_steps", "4", "--k_anchor", "2", "--stu_inference_steps", "2"),
        *("--teacher_guidance_scale", "8", "--student_sigmas", "trailing", "--batch_size", "2"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--report_to", "none", "--seed", "3"),
    ]


def state_bytes(path: Path) -> dict[str, bytes]:
    """Return the trained weights and the optimizers' moments of a checkpoint."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for part in (f"student/{LAYOUT.network}", "state")
        for file in (path / part).glob("*.safetensors")
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_equal(flags, tmp_path, tiny_scorers, method):
    """Six updates equal four plus two: all networks and their optimizers end in the same bytes."""
    more = [*flags, *method_flags(method, tiny_scorers), "--ckpt_every", "4", "--per_train_fake_num", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*more, "--run_dir", str(whole), "--max_steps", "6"]) == 0
    assert train.main([*more, "--run_dir", str(parts), "--max_steps", "4"]) == 0
    resume = ["--max_steps", "6", "--resume_from_checkpoint", "latest"]
    assert train.main([*more, "--run_dir", str(parts), *resume]) == 0
    ours, theirs = (state_bytes(run / "ckpts" / "step_000006") for run in (parts, whole))
    assert len(ours) == 2 * len(registry.trained_networks(MethodConfig(method=method))) and ours == theirs
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["turn"] for line in records] == ["fake", "fake", "student"] * 2
    assert ("loss_div" in records[5]) == (method == "dpdmd")


@pytest.mark.parametrize("sigmas", ["default", "trailing", "14.6,2.5"])
def test_exported_student_is_a_diffusers_pipeline(flags, tmp_path, sigmas):
    """diffusers loads the export and with the options of dpdmd.json makes our images; so does `dpdmd.generate`."""
    run = tmp_path / "run"
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "6", "--student_sigmas", sigmas]) == 0
    student = run / "ckpts" / "latest" / "student"
    assert not any(path.is_symlink() for path in student.rglob("*"))
    defaults = json.loads((student / "dpdmd.json").read_text())
    assert (defaults["steps"], defaults["guidance_scale"], defaults["max_sequence_length"]) == (2, 1.0, 10)
    pipe = StableDiffusionXLPipeline.from_pretrained(student, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    eps = normal_per_sample(SHAPE, 0, "picture", 0, [0])
    plain = sigmas in ("default", "trailing")  # numbers are whole times only by chance
    call = {"num_inference_steps": 2} if plain else {"sigmas": defaults["sigmas"]}
    assert (defaults["sigmas_argument"] is None) == plain
    theirs = pipe("a red circle", latents=eps, guidance_scale=1.0, output_type="np", **call).images[0]
    sampler, encoder = load_sampler(run, CPU)
    ours = sampler.images(encoder.encode(["a red circle"]), [(0, 0)], 0)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 1e-3 and theirs.std() > 0.05
    assert generate.main(["--model", str(run), "--prompt", "a red circle", "--num_images", "1", "--out", str(run)]) == 0
    assert np.abs(np.asarray(Image.open(run / "00000_000.png")) / 255 - theirs).max() < 0.5 / 255 + 1e-3
    teacher = load_file(Path(flags[3]) / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    assert (
        load_file(student / LAYOUT.network / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
        - teacher["conv_in.weight"]
    ).abs().max() > 1e-4


def test_text_cache_keeps_the_zeros_and_the_trajectory(flags, tmp_path):
    """A run with prompts encoded ahead has the same losses, the unconditional input included."""
    runs = [tmp_path / "live", tmp_path / "cached"]
    for run, more in zip(runs, ([], ["--cache_text_embeddings", str(tmp_path / "cache")]), strict=True):
        assert train.main([*flags, *more, "--run_dir", str(run), "--max_steps", "6"]) == 0
    losses = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for live, cached in zip(*losses, strict=True):
        name = "loss_student" if live["turn"] == "student" else "loss_fake"
        assert cached[name] == pytest.approx(live[name], rel=1e-4)  # a CLIP rounds differently in another batch size


def test_evaluation_in_the_loop_bf16_and_recomputation(flags, tmp_path, tiny_scorers):
    """A small version of the script's run: scorers score student and teacher, networks compute in bf16."""
    scorers = [part for name, path in tiny_scorers.items() for part in (f"--{name}", path)]
    prompts = flags[flags.index("--prompt_txt") + 1]
    more = ["--div_prompts", prompts, "--pref_prompts", prompts, "--eval_prompts_limit", "2", "--num_div_seeds", "2"]
    run = tmp_path / "run"
    command = [*flags, *scorers, *more, "--bf16", "--gradient_checkpointing", "--run_dir", str(run), "--max_steps", "6"]
    assert train.main(command) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in records if line["turn"] == "eval"]
    assert [line["step"] for line in scores] == [0, 6]
    assert all(value is not None for line in scores for value in line.values())
    assert {tensor.dtype for tensor in load_file(run / "ckpts/latest/state/fake.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sigmas", ["default", "trailing"])
def test_the_doctor_says_ok(flags, tmp_path, tiny_scorers, capsys, method, sigmas):
    more = [*method_flags(method, tiny_scorers), "--student_sigmas", sigmas, "--out", str(tmp_path / "doctor")]
    assert doctor.main([*flags, *more]) == 0, capsys.readouterr().out


def test_a_release_style_network_is_sampled_in_four_steps(tiny_sdxl, tmp_path):
    """A .pt file with --base_model has the family of the base."""
    state = load_file(tiny_sdxl / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    torch.save(state, tmp_path / "student.pt")
    sampler, _ = load_sampler(tmp_path / "student.pt", CPU, base_model=tiny_sdxl)
    assert isinstance(sampler.family, SDXL)
    assert len(sampler.settings.sigmas) == 5 and sampler.settings.guidance_scale == 1.0


@pytest.mark.parametrize("recomputed", [False, True])
def test_lora_files_are_what_the_run_samples(flags, tmp_path, tiny_sdxl, recomputed):
    """diffusers, the file for ComfyUI and `dpdmd.export` give the same change; alpha is three times the rank."""
    run, more = tmp_path / "run", ["--gradient_checkpointing"] if recomputed else []
    command = [*flags, *more, "--lora_rank", "2", "--lora_alpha", "6", "--lr_student", "1e-2"]
    assert train.main([*command, "--run_dir", str(run), "--max_steps", "6"]) == 0
    folder = run / "ckpts" / "latest" / "lora"
    sampler, encoder = load_sampler(run, CPU)
    eps = normal_per_sample(SHAPE, 0, "picture", 0, [0])
    ours = sampler.latents(encoder.encode(PROMPTS[:1]), eps)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "sigmas": list(read_sampling_defaults(folder, LAYOUT.defaults).sigmas),
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    teacher = pipe(PROMPTS[:1], latents=eps, **call).images
    pipe.load_lora_weights(folder)
    torch.testing.assert_close(pipe(PROMPTS[:1], latents=eps, **call).images, ours, rtol=0, atol=2e-3)
    assert (teacher - ours).abs().max() > 0.05
    assert export.main(["--model", str(run), "--out", str(tmp_path / "whole")]) == 0
    whole = load_file(tmp_path / "whole" / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_sdxl / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    named, layers = load_file(folder / COMFYUI_WEIGHTS), LAYOUT.adapted_layers(tiny_sdxl, LAYOUT.lora_targets)
    assert f'"lora_name": "{COMFYUI_WEIGHTS}"' in (folder / WORKFLOW).read_text()
    assert len(named) == 3 * len(layers) == 3 * len(load_file(folder / LORA_WEIGHTS)) // 2
    for layer in layers:
        name = f"lora_unet_{layer.replace('.', '_')}"
        change = named[f"{name}.lora_up.weight"] @ named[f"{name}.lora_down.weight"] * named[f"{name}.alpha"] / 2
        torch.testing.assert_close(whole[f"{layer}.weight"] - before[f"{layer}.weight"], change, rtol=1e-4, atol=1e-6)


def test_the_size_of_a_checkpoint_is_known_before_the_run(tiny_sdxl):
    config = Config()
    config.model.family, config.model.teacher_id = "sdxl", str(tiny_sdxl)
    assert checkpoint.size_in_bytes(config) == 24 * LAYOUT.count_parameters(tiny_sdxl)
