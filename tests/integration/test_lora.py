"""LoRA from the command line: runs, and the files that diffusers and ComfyUI read."""

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from processes import cpu_environment
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd import export, train
from dpdmd.compare import measure_commands
from dpdmd.config import read_yaml
from dpdmd.models.comfyui_workflow import WORKFLOW
from dpdmd.models.lora_files import COMFYUI_WEIGHTS, LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling.find_model import find_model
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


def final_state(run: Path) -> dict[str, Tensor]:
    folder = run / "ckpts" / "step_000009"
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


@pytest.fixture(scope="module")
def dropping(short_run: list[str]) -> list[str]:
    """Return the command line of a run with dropout, without its length and folder."""
    rates = ["--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    return [*short_run, *LORA_FLAGS, *rates, "--lora_dropout", "0.3"]


@pytest.fixture(scope="module")
def dropping_run(dropping: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("dropout") / "run"
    assert train.main([*dropping, "--run_dir", str(run), "--max_steps", "9"]) == 0
    return run


def test_dropout_changes_training_and_a_resume_or_a_recomputation_does_not(dropping, dropping_run, lora_run, tmp_path):
    command = [*dropping, "--run_dir", str(tmp_path / "run"), "--gradient_checkpointing"]
    assert train.main([*command, "--max_steps", "5"]) == 0
    assert train.main([*command, "--max_steps", "9", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs, without = final_state(tmp_path / "run"), final_state(dropping_run), final_state(lora_run)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert max((ours[name] - without[name]).abs().max() for name in ours) > 1e-2


def test_masks_do_not_depend_on_how_a_batch_is_divided(dropping, dropping_run, tmp_path):
    command = [*dropping, "--batch_size", "1", "--grad_accum", "2", "--run_dir", str(tmp_path / "run")]
    assert train.main([*command, "--max_steps", "9"]) == 0
    losses = [
        [json.loads(line).get("loss_fake", 0.0) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", dropping_run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


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
    """alpha is three times the rank. The file has no metadata about it, so diffusers assumes that they are equal."""
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


def test_every_loader_reads_the_same_change(lora_run):
    """B A of the file is the change of each merged weight, under the names that ComfyUI too reads for SD3.

    ComfyUI (comfy/lora.py) takes `transformer.` and the layer's name in diffusers with `.lora_A.weight` and
    `.lora_B.weight`, and 1 for alpha / rank without a tensor `.alpha`.
    """
    folder = lora_run / "ckpts" / "latest" / "lora"
    assert not (folder / COMFYUI_WEIGHTS).exists()
    assert f'"lora_name": "{LORA_WEIGHTS}"' in (folder / WORKFLOW).read_text()
    named = load_file(folder / LORA_WEIGHTS)
    layers = {name.removesuffix(".lora_A.weight") for name in named if name.endswith(".lora_A.weight")}
    assert len(named) == 2 * len(layers)
    assert all(layer.startswith("transformer.transformer_blocks.") for layer in layers)
    network = SD35(CPU, torch.float32).load_network(
        Path(read_sampling_defaults(folder, LAYOUTS["sd35"].defaults).base), torch.float32
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    SD35(CPU, torch.float32).load_lora(network, folder)
    network.fuse_lora(safe_fusing=True)
    network.unload_lora()
    after = network.state_dict()
    assert after.keys() == before.keys()
    changed = 0.0
    for layer in layers:
        change = named[f"{layer}.lora_B.weight"] @ named[f"{layer}.lora_A.weight"]
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


def test_a_programs_own_base_counts_only_if_the_lora_names_none(
    lora_run, tiny_pipeline, tiny_scorers, tmp_path, monkeypatch
):
    """The variable at the top of the program's file is for a network alone; the flag wins over the LoRA's own base."""
    program = runpy.run_path(str(Path(__file__).parents[2] / "test_diversity.py"))["PROGRAM"]
    own = Path(shutil.copytree(tiny_pipeline, tmp_path / "own"))
    program = replace(program, defaults={**program.defaults, "base_model": str(own)})
    alone = Path(shutil.copytree(lora_run / "ckpts" / "latest" / "lora", tmp_path / "lora"))
    network = tmp_path / "network.pt"
    network.touch()
    (tmp_path / "prompts.txt").write_text("a cross\n")

    def base_of(model: Path, *flags: str) -> Path:
        given = ["--model", str(model), "--clip_path", tiny_scorers["clip_path"], "--dino_path", "", *flags]
        given += ["--prompts_txt", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "out")]
        job = program.check(program.parser().parse_args(given))
        return find_model(job.model, job.base_model).folder

    known = Path(json.loads((alone / "dpdmd.json").read_text())["base"])
    assert base_of(alone) == base_of(lora_run) == known != own and base_of(network) == own
    assert base_of(alone, "--base_model", str(own)) == own
    (alone / "dpdmd.json").unlink()
    assert base_of(alone) == own
    out = ["--output_dir", str(tmp_path / "out")]
    command = ["test_diversity.py", "--model", str(lora_run), *out]  # as a sweep measures it
    monkeypatch.setattr(measure_commands, "_load_program", lambda path: program)
    shutil.rmtree(own)
    measure_commands.parse_command(command).check_model()


WRITE_LORA = """
import sys, torch
from pathlib import Path
from dpdmd.models.lora import Adapter
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sd35.family import SD35
from dpdmd.models.sdxl.family import SDXL
draw = torch.Generator().manual_seed(0)
layers = [f"{place}.attn.{name}" for place in ("a.0", "b.1") for name in ("to_q", "to_k", "to_v", "to_out.0")]
halves = {"lora_A": (3, 5), "lora_B": (7, 3)}
shapes = {f"{layer}.{half}.weight": halves[half] for layer in layers for half in halves}
state = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
adapter = Adapter(3, 7.0, ("to_q", "to_k", "to_v", "to_out.0"))
for kind, source in ((SD35, sys.argv[1]), (SDXL, sys.argv[2])):
    family = kind(torch.device("cpu"), torch.float32)
    family.export_lora(Path(sys.argv[3], kind.__name__), state, adapter, Path(source), SamplingDefaults())
"""


def test_the_bytes_are_a_function_of_the_weights(tiny_pipeline, tiny_sdxl, tmp_path):
    """Sets have another order in each process; the metadata of safetensors too if it has several entries."""
    for seed in ("0", "1", "2"):
        command = [sys.executable, "-c", WRITE_LORA, str(tiny_pipeline), str(tiny_sdxl), str(tmp_path / seed / "lora")]
        subprocess.run(command, check=True, env=cpu_environment() | {"PYTHONHASHSEED": seed})
    folders = [tmp_path / seed for seed in ("0", "1", "2")]
    written = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")} for folder in folders
    ]
    assert written[0] == written[1] == written[2]
    names = {str(path.relative_to("lora")) for path in written[0]}
    assert names == {f"SD35/{LORA_WEIGHTS}", f"SDXL/{LORA_WEIGHTS}", f"SDXL/{COMFYUI_WEIGHTS}"}


def test_the_file_without_its_metadata_is_the_same_lora(lora_run, tmp_path):
    alone = tmp_path / "lora"
    shutil.copytree(lora_run / "ckpts" / "latest" / "lora", alone)
    save_file(load_file(alone / LORA_WEIGHTS), alone / LORA_WEIGHTS)
    assert torch.equal(our_image(alone), our_image(lora_run))


def test_a_checkpoint_of_an_older_version_has_the_adapter_in_its_export(lora_run, tmp_path):
    step, older = lora_run / "ckpts" / "step_000009", tmp_path / "step_000009"
    exact = load_file(step / "state" / "student.safetensors")
    save_file({f"transformer.{name}": value for name, value in exact.items()}, tmp_path / LORA_WEIGHTS)
    (older / "state").mkdir(parents=True)
    family = SD35(CPU, torch.float32)
    for folder, exported in ((step, step / "lora"), (older, tmp_path)):
        loaded = checkpoint.load_adapter(folder, "student", exported, family)
        assert loaded.keys() == exact.keys() and all(torch.equal(loaded[name], exact[name]) for name in exact)
    folded = family.read_lora(step / "lora")
    assert all(torch.equal(folded[name], exact[name] * (ALPHA / RANK if ".lora_B." in name else 1)) for name in exact)
