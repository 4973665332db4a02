"""SDXL as a family, on a small random pipeline: text, conditions, losses, and runs from the command line."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from small_distillation import make_critic, method_flags, squared_distance
from torch import Tensor

from dpdmd import doctor, export, generate, train
from dpdmd.config import Config
from dpdmd.config.options import MethodConfig
from dpdmd.config.presets import FAMILIES
from dpdmd.methods import loss_terms, registry, updates
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks, load_networks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models import lora
from dpdmd.models.base import TextEmbedding
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS, family_class, family_of
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.sdxl.family import SDXL
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import checkpoint
from dpdmd.utils.rng import normal_per_sample

CPU = torch.device("cpu")
LAYOUT = LAYOUTS["sdxl"]
PROMPTS = ["a red circle", "a large square on a white background"]
K, SCALE = 2, 8.0
SHAPE = (4, 8, 8)


@pytest.fixture
def flags(tiny_sdxl: Path, short_run: list[str]) -> list[str]:
    """A short run's command line, without a run folder."""
    prompts = short_run[short_run.index("--prompt_txt") + 1]
    return [
        *("--family", "sdxl", "--teacher_id", str(tiny_sdxl), "--prompt_txt", prompts, "--height", "64"),
        *("--width", "64", "--teacher_infer_steps", "4", "--k_anchor", "2", "--stu_inference_steps", "2"),
        *("--teacher_guidance_scale", "8", "--student_sigmas", "trailing", "--batch_size", "2"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--report_to", "none", "--seed", "3"),
    ]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    """diffusers' own, of the same folder."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def changed(folder: Path, target: Path, file: str, **values) -> Path:
    """A copy of a pipeline folder with some entries of one of its JSON files changed."""
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return target


# Text and conditions


def test_text_is_diffusers_own_and_the_empty_prompt_is_zeros(tiny_sdxl, pipe):
    """Both CLIPs side by side and the second's pooled output; "" in any place of a batch is the unconditional input."""
    encoder = SDXL(CPU, torch.float32).load_text_encoder(tiny_sdxl, 10)
    ours = encoder.encode([PROMPTS[0], "", PROMPTS[1]])
    context, empty, pooled, empty_pooled = pipe.encode_prompt(PROMPTS, device=CPU, do_classifier_free_guidance=True)
    # ours holds one row more, and some CPUs sum a batch of another size in another order
    said = (ours.context[[0, 2]], ours.pooled[[0, 2]])
    torch.testing.assert_close(said, (context, pooled), rtol=0, atol=1e-5)
    assert torch.equal(ours.context[1], empty[0]) and torch.equal(ours.pooled[1], empty_pooled[0])
    assert not ours.context[1].any() and not ours.pooled[1].any()


def test_a_folder_that_wants_the_empty_prompts_own_embedding_gets_it(tiny_sdxl, tmp_path):
    """Guidance follows model_index.json, as the pipeline does."""
    folder = changed(tiny_sdxl, tmp_path / "real", "model_index.json", force_zeros_for_empty_prompt=False)
    ours = SDXL(CPU, torch.float32).load_text_encoder(folder, 10).encode(["", PROMPTS[0]])
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    with torch.no_grad():
        theirs = pipe.encode_prompt(PROMPTS[:1], device=CPU, do_classifier_free_guidance=True)
    torch.testing.assert_close((ours.context[:1], ours.pooled[:1]), (theirs[1], theirs[3]), rtol=0, atol=1e-5)
    assert ours.context[0].abs().mean() > 0.1 and ours.pooled[0].abs().mean() > 0.1


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_what_the_network_is_told(tiny_sdxl, compute_dtype):
    """Times whole and in fp32, sizes in pixels (height first), pooled text; it computes in the type asked for."""
    family, seen = SDXL(CPU, compute_dtype), []
    network = family.load_network(tiny_sdxl, torch.float32)
    network.register_forward_pre_hook(lambda *arguments: seen.append(arguments[2]), with_kwargs=True)
    network.mid_block.attentions[0].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    text = family.load_text_encoder(tiny_sdxl, 10).encode(PROMPTS)
    sigma = family.load_schedule(tiny_sdxl).score_sigmas()[[0, 499]]
    prediction = family.predict(network, torch.randn(2, 4, 6, 10), sigma, text)
    told, inside = seen
    assert told["timestep"].dtype == torch.float32 and told["timestep"].tolist() == [999, 500]
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] * 2
    assert torch.equal(told["added_cond_kwargs"]["text_embeds"], text.pooled)
    assert prediction.dtype == torch.float32 and prediction.shape == (2, 4, 6, 10)
    assert inside[0].dtype == compute_dtype


@pytest.mark.parametrize("guidance", [1.0, SCALE])
def test_the_sampler_agrees_with_diffusers(tiny_sdxl, pipe, guidance):
    """Grid, times, guidance with zeros, size conditions, step and decoding are the pipeline's own."""
    sampler, encoder = load_sampler(tiny_sdxl, CPU, steps=3, guidance_scale=guidance)
    eps = normal_per_sample(SHAPE, 0, "picture", 0, [0, 1])
    ours = sampler.latents(encoder.encode(PROMPTS), eps)
    call = {"num_inference_steps": 3, "guidance_scale": guidance, "height": 64, "width": 64}
    theirs = pipe(PROMPTS, latents=eps, output_type="latent", **call).images
    assert (ours - theirs).abs().max() < 2e-4 and theirs.std() > 1  # x0 has a deviation of 3 to 5
    decoded = pipe(PROMPTS, latents=eps, output_type="pt", **call).images
    assert (sampler.decoder.decode(ours) - decoded).abs().max() < 1e-4 and decoded.std() > 0.05


def test_bf16_images_are_those_of_fp32_nearly(tiny_sdxl):
    """--bf16 decodes in bf16 too, which has the range of fp32 (fp16 would overflow) and three digits."""
    latents = 5 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        SDXL(CPU, dtype).load_image_decoder(tiny_sdxl).decode(latents) for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and 0 < (exact - rounded).abs().max() < 0.05


# The losses


@pytest.fixture(scope="module")
def trio(tiny_sdxl: Path) -> Networks:
    """Teacher, student and fake score, moved apart by 10%; tests work on copies."""
    config = Config()
    config.model.teacher_id = config.model.student_id = config.model.fake_id = str(tiny_sdxl)
    networks, random = load_networks(config, SDXL(CPU, torch.float32)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (networks.student, networks.fake):
            for parameter in network.parameters():
                parameter.add_(0.1 * parameter.square().mean().sqrt() * torch.randn(parameter.shape, generator=random))
    return networks


Make = Callable[..., DistillationContext]


@pytest.fixture
def make(trio: Networks, tiny_sdxl: Path) -> Make:
    def build(**options) -> DistillationContext:
        family, networks = SDXL(CPU, torch.float32), copy.deepcopy(trio)
        values = {"teacher_infer_steps": 6, "k_anchor": K, "teacher_guidance_scale": SCALE, **options}
        config = MethodConfig(student_sigmas="trailing", **values)
        schedule = family.load_schedule(tiny_sdxl)
        null, discriminator = family.load_text_encoder(tiny_sdxl, 10).encode([""]), None
        if registry.DISCRIMINATOR in registry.trained_networks(config):
            discriminator = make_critic(family, networks.fake, null, SHAPE)
        return DistillationContext(
            config=config,
            family=family,
            schedule=schedule,
            networks=networks,
            student_forward=networks.student,
            fake_forward=networks.fake,
            null=null,
            latent_shape=SHAPE,
            seed=0,
            decoder=family.load_image_decoder(tiny_sdxl),
            perceptual=squared_distance,
            discriminator=discriminator,
            **DistillationContext.grids(config, schedule, CPU),
        )

    return build


@pytest.fixture(scope="module")
def batch(tiny_sdxl: Path) -> MicroBatch:
    text = SDXL(CPU, torch.float32).load_text_encoder(tiny_sdxl, 10).encode(PROMPTS)
    return MicroBatch(text, 5, [0, 1], 5)


def noise_of(run: DistillationContext, network, z: Tensor, sigma: float, text: TextEmbedding) -> Tensor:
    with torch.no_grad():
        return run.family.predict(network, z, torch.full((len(z),), sigma), text)


def guided(run: DistillationContext, z: Tensor, sigma: float, text: TextEmbedding) -> Tensor:
    """u + s (c - u) of the teacher by two calls, u with zeros in place of text."""
    empty = TextEmbedding(torch.zeros_like(text.context), torch.zeros_like(text.pooled))
    u = noise_of(run, run.networks.teacher, z, sigma, empty)
    return u + SCALE * (noise_of(run, run.networks.teacher, z, sigma, text) - u)


def ddim(z: Tensor, eps: Tensor, sigma_s: float, sigma_t: float) -> Tensor:
    """sqrt(a_t) x0 + sqrt(1 - a_t) eps with x0 = (z - sqrt(1 - a_s) eps) / sqrt(a_s)."""
    a_s, a_t = 1 / (1 + sigma_s**2), 1 / (1 + sigma_t**2)
    return a_t**0.5 * (z - (1 - a_s) ** 0.5 * eps) / a_s**0.5 + (1 - a_t) ** 0.5 * eps


def test_the_tiny_network_can_tell_differences(make, batch):
    """Noise, time, each kind of text and weights move the output by over a tenth; else the tests here prove little."""
    run = make()
    z, text, teacher = run.start_noise(batch), batch.text, run.networks.teacher
    reference = noise_of(run, teacher, z, 3.0, text)
    others = {
        "noise": noise_of(run, teacher, z.flip(0), 3.0, text),
        "time": noise_of(run, teacher, z, 0.5, text),
        "context": noise_of(run, teacher, z, 3.0, replace(text, context=text.context.flip(0))),
        "pooled": noise_of(run, teacher, z, 3.0, replace(text, pooled=text.pooled.flip(0))),
        "empty": noise_of(run, teacher, z, 3.0, run.null.expand(2)),
        "student": noise_of(run, run.networks.student, z, 3.0, text),
        "fake": noise_of(run, run.networks.fake, z, 3.0, text),
    }
    for name, value in others.items():
        assert (value - reference).std() > 0.1 * reference.std(), name


@pytest.mark.parametrize("k_anchor", [K, 6])
def test_diversity_loss_is_in_x0_space(make, batch, k_anchor):
    """mse of the student's x0 at its first time to the teacher's x0 at the anchor, by a hand-written loop."""
    run = make(k_anchor=k_anchor)
    eps = z = run.start_noise(batch)
    grid, first = run.teacher_sigmas.tolist(), run.student_sigmas[0].item()
    for sigma_s, sigma_t in pairwise(grid[: k_anchor + 1]):
        z = ddim(z, guided(run, z, sigma_s, batch.text), sigma_s, sigma_t)
    target = z if k_anchor == 6 else ddim(z, guided(run, z, grid[k_anchor], batch.text), grid[k_anchor], 0)
    ours = ddim(eps, noise_of(run, run.networks.student, eps, first, batch.text), first, 0)
    found = student_loss(run, batch).metrics["loss_div"].item()
    assert found == pytest.approx((ours - target).square().mean().item(), rel=1e-4)
    assert found > 0.1


def test_fake_loss_is_noise_prediction_on_the_students_samples(make, batch):
    """mse(eps_fake(z_t, t), noise) at z_t = sqrt(a) x_theta + sqrt(1 - a) noise."""
    run = make()
    x, grid = run.start_noise(batch), run.student_sigmas.tolist()
    for sigma_s, sigma_t in pairwise(grid):
        x = ddim(x, noise_of(run, run.networks.student, x, sigma_s, batch.text), sigma_s, sigma_t)
    _, sigma, noise = run.score_input(batch, x)
    a = (1 / (1 + sigma**2)).reshape(2, 1, 1, 1)
    with torch.no_grad():
        prediction = run.family.predict(run.networks.fake, a.sqrt() * x + (1 - a).sqrt() * noise, sigma, batch.text)
    found = fake_score_loss(run, batch).loss.item()
    assert found == pytest.approx((prediction - noise).square().mean().item(), rel=1e-4)


def test_dmd_loss_compares_the_x0_of_guided_teacher_and_fake_score(make, batch):
    run = make(method="dmd")
    result = student_loss(run, batch)
    x = result.images["student"]
    z_t, sigma, _ = run.score_input(batch, x)
    for i in range(2):
        one, s = replace(batch.text, context=batch.text.context[[i]], pooled=batch.text.pooled[[i]]), sigma[i].item()
        real = ddim(z_t[[i]], guided(run, z_t[[i]], s, one), s, 0)
        fake = ddim(z_t[[i]], noise_of(run, run.networks.fake, z_t[[i]], s, one), s, 0)
        torch.testing.assert_close(result.images["x0_real"][[i]], real, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result.images["x0_fake"][[i]], fake, rtol=1e-3, atol=1e-3)
    direction = result.images["x0_fake"] - result.images["x0_real"]
    direction /= (z_t - result.images["x0_real"]).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert result.loss.item() == pytest.approx(0.5 * direction.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", registry.METHODS)
def test_gradient_of_the_dmd_term_stops_where_the_method_detaches(make, batch, method):
    """Every weight of the trained network gets gradient, no other network any; the first prediction as the method."""
    run = make(method=method)
    turn = updates.roll_out_student(run, batch)
    loss = loss_terms.dmd_term(run, turn).loss
    (first,) = torch.autograd.grad(loss, turn.rollout.first_prediction, allow_unused=True, retain_graph=True)
    assert (first is not None and first.abs().max() > 0) != registry.METHODS[method].detach_first_step
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.networks.student.parameters())
    assert all(p.grad is None for n in (run.networks.teacher, run.networks.fake) for p in n.parameters())


# Runs


def state_bytes(path: Path) -> dict[str, bytes]:
    """The trained weights and moments of a checkpoint."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for part in (f"student/{LAYOUT.network}", "state")
        for file in (path / part).glob("*.safetensors")
    }


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_resumed_run_is_bit_equal(flags, tmp_path, tiny_scorers, method):
    """Six updates at once, and four plus two: all networks and their optimizers take the same bytes."""
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
    """diffusers loads the export and, called as its dpdmd.json says, makes our images; so does `dpdmd.generate`."""
    run = tmp_path / "run"
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "6", "--student_sigmas", sigmas]) == 0
    student = run / "ckpts" / "latest" / "student"
    assert not any(path.is_symlink() for path in student.rglob("*"))
    defaults = json.loads((student / "dpdmd.json").read_text())
    assert (defaults["steps"], defaults["guidance_scale"], defaults["max_sequence_length"]) == (2, 1.0, 10)
    pipe = StableDiffusionXLPipeline.from_pretrained(student, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    eps = normal_per_sample(SHAPE, 0, "picture", 0, [0])
    call = {"num_inference_steps": 2} if sigmas == "default" else {"sigmas": defaults["sigmas"]}
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
    """With prompts encoded ahead a run is the same: the unconditional input as well."""
    runs = [tmp_path / "live", tmp_path / "cached"]
    for run, more in zip(runs, ([], ["--cache_text_embeddings", str(tmp_path / "cache")]), strict=True):
        assert train.main([*flags, *more, "--run_dir", str(run), "--max_steps", "6"]) == 0
    losses = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for live, cached in zip(*losses, strict=True):
        name = "loss_student" if live["turn"] == "student" else "loss_fake"
        assert cached[name] == pytest.approx(live[name], rel=1e-4)  # a CLIP rounds otherwise in another batch


def test_evaluation_in_the_loop_bf16_and_recomputation(flags, tmp_path, tiny_scorers):
    """The run that the script starts, in small: scorers look at student and teacher, networks compute in bf16."""
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


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize("sigmas", ["default", "trailing"])
def test_the_doctor_finds_it_well(flags, tmp_path, tiny_scorers, capsys, method, sigmas):
    more = [*method_flags(method, tiny_scorers), "--student_sigmas", sigmas, "--out", str(tmp_path / "doctor")]
    assert doctor.main([*flags, *more]) == 0, capsys.readouterr().out


def test_a_release_style_network_is_sampled_in_four_steps(tiny_sdxl, tmp_path):
    """A .pt with --base_model: the family is the base's."""
    state = load_file(tiny_sdxl / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    torch.save(state, tmp_path / "student.pt")
    sampler, _ = load_sampler(tmp_path / "student.pt", CPU, base_model=tiny_sdxl)
    assert isinstance(sampler.family, SDXL)
    assert len(sampler.settings.sigmas) == 5 and sampler.settings.guidance_scale == 1.0


@pytest.mark.parametrize("recomputed", [False, True])
def test_lora_files_are_what_the_run_samples(flags, tmp_path, tiny_sdxl, recomputed):
    """diffusers, ComfyUI's names and `dpdmd.export` all give the same change; alpha is three times the rank."""
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
    named, layers = load_file(folder / lora.COMFYUI_WEIGHTS), LAYOUT.adapted_layers(tiny_sdxl, LAYOUT.lora_targets)
    assert len(named) == 3 * len(layers) == 3 * len(load_file(folder / LORA_WEIGHTS)) // 2
    for layer in layers:
        name = f"lora_unet_{layer.replace('.', '_')}"
        change = named[f"{name}.lora_up.weight"] @ named[f"{name}.lora_down.weight"] * named[f"{name}.alpha"] / 2
        torch.testing.assert_close(whole[f"{layer}.weight"] - before[f"{layer}.weight"], change, rtol=1e-4, atol=1e-6)


# What a folder must hold


def test_families_and_layouts_are_the_same_names(tiny_sdxl, tiny_pipeline):
    assert tuple(LAYOUTS) == tuple(FAMILIES)
    assert [family_class(name).__name__ for name in FAMILIES] == ["SD35", "SDXL"]
    assert (family_of(tiny_sdxl), family_of(tiny_pipeline)) == ("sdxl", "sd35")


def test_what_small_files_say(tiny_sdxl):
    """Sizes, defaults and the weights of a checkpoint, without loading anything."""
    check_folder(LAYOUT, tiny_sdxl, "--teacher_id")
    weights = load_file(tiny_sdxl / LAYOUT.network / "diffusion_pytorch_model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    assert LAYOUT.count_parameters(tiny_sdxl) == count
    config = Config()
    config.model.family, config.model.teacher_id = "sdxl", str(tiny_sdxl)
    assert checkpoint.size_in_bytes(config) == 24 * count
    assert LAYOUT.default_size(tiny_sdxl) == 64
    defaults = read_sampling_defaults(tiny_sdxl, LAYOUT.defaults)
    assert defaults == SamplingDefaults(steps=50, guidance_scale=8.0, max_sequence_length=77)
    assert LAYOUT.text_length(tiny_sdxl, None, defaults) == 10
    LAYOUT.check_size(tiny_sdxl, 4096, 72)
    with pytest.raises(ValueError, match="--width 68: must be a multiple of 8"):
        LAYOUT.check_size(tiny_sdxl, 64, 68)
    with pytest.raises(ValueError, match="--max_sequence_length 77: this model's prompts have 10 tokens"):
        LAYOUT.text_length(tiny_sdxl, 77, defaults)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "is of a StableDiffusionXLImg2Img"),
        ("model_index.json", {"text_encoder": [None, None]}, "model_index.json lacks text_encoder"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, but a Euler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type 'v_prediction'"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}, "in place of 'leading'"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end 0.02 in place of 0.012"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 3]}, "weights have 2 blocks, its config.json 3"),
        ("unet/config.json", {"cross_attention_dim": 64}, "attn2.to_k.weight has shape (32, 128)"),
        ("unet/config.json", {"in_channels": 9}, "conv_in.weight has shape (16, 4, 3, 3)"),
        ("vae/config.json", {"block_out_channels": [16, 32, 32]}, "a latent spans 4 pixels, not 8"),
    ],
)
def test_another_models_folder_is_refused(tiny_sdxl, tmp_path, file, values, says):
    """One line that names the flag, the file, and where to get the right one."""
    folder = changed(tiny_sdxl, tmp_path / "changed", file, **values)
    with pytest.raises(ValueError) as told:
        check_folder(LAYOUT, folder, "--teacher_id")
    assert says in str(told.value) and str(told.value).startswith(f"--teacher_id {folder}: ")
    assert "stabilityai/stable-diffusion-xl-base-1.0" in str(told.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_missing_part_is_told(tiny_sdxl, tmp_path, part):
    folder = tmp_path / "lacking"
    shutil.copytree(tiny_sdxl, folder)
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"{part} is missing"):
        check_folder(LAYOUT, folder, "--teacher_id")


def test_weights_with_a_hole_do_not_load(tiny_sdxl, tmp_path):
    """What the small files cannot tell is told on loading, not filled with random numbers."""
    folder = tmp_path / "hole"
    shutil.copytree(tiny_sdxl, folder)
    file = folder / LAYOUT.network / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["up_blocks.0.resnets.0.conv1.weight"]
    save_file(weights, file)
    with pytest.raises(ValueError, match="its weights lack up_blocks"):
        SDXL(CPU, torch.float32).load_network(folder, torch.float32)
