"""What every family must do, on small random models: sample as its own pipeline does, train, resume, export.

A new family needs no test here: only `save_tiny_FAMILY` in small_models.py, with weights that are strong enough for
prompt and time to matter. A model of a known family that differs in its arithmetic is a row of `VARIANTS`.
"""

import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, QwenImagePipeline
from PIL import ImageChops
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from dpdmd import doctor, export, generate, train
from dpdmd.config import Config
from dpdmd.config.variants import find_variant
from dpdmd.data.tensor_cache import Processes
from dpdmd.data.text_embedding_cache import EmbeddingSettings, cached_encoder
from dpdmd.demo.__main__ import build_parser
from dpdmd.demo.comparison import Comparison
from dpdmd.demo.models import check_models, load_models
from dpdmd.demo.sources import find_sources
from dpdmd.methods.discriminator import choose_blocks
from dpdmd.methods.networks import load_networks, recompute_blocks
from dpdmd.models.base import Family, TextEmbedding, TextEncoder
from dpdmd.models.compilation import compile_blocks
from dpdmd.models.registry import LAYOUTS, family_class, family_of
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.run_folder import LATEST, RunFolder
from dpdmd.sampling.load_model import load_sampler
from dpdmd.sampling.sampler import SamplerSettings
from dpdmd.utils.image_grid import to_pil
from dpdmd.utils.rng import normal_per_sample

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a red circle", "a large blue square and a small cyan cross on a grey background", "x"]
EXACT = 1e-5  # relative, in fp32
# diffusers keeps c z as its sample of SDXL, which is 4096 z at zero terminal SNR. A step to a c of about 1 leaves this
# number's rounding error. test_v_prediction_schedule.py compares both samplers with float64.
EXACT_FROM_NOISE_ALONE, EXACT_IN_TWO_STEPS = 1e-4, 5e-4
VARIANTS = (
    "sd35_large",
    "sd3_medium",
    "sdxl_trailing",
    "sdxl_v",
    "sdxl_v_trailing",
)  # further small models of a family
TIMES = [0.9, 0.9009, 0.9018]  # of a flow; bf16 would round the second and the third to one number


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def exact(sigmas: Tensor) -> float:
    """Return how well diffusers' sampler agrees with ours on a grid."""
    if sigmas[0] < 1000:
        return EXACT
    return EXACT_FROM_NOISE_ALONE if len(sigmas) > 3 else EXACT_IN_TWO_STEPS


@dataclass(frozen=True)
class Small:
    """A family's small folder, loaded."""

    name: str
    folder: Path
    family: Family
    network: nn.Module
    encoder: TextEncoder

    def noise(self, *size: int, count: int = len(PROMPTS)) -> Tensor:
        """Return start noise for images of this height and width."""
        shape = self.family.load_image_decoder(self.folder).latent_shape(*size)
        return normal_per_sample(shape, 0, "picture", 0, range(count))

    @property
    def text_options(self) -> dict[str, Any]:
        """Return the length of a prompt as an option of the family's pipeline, if it has this option."""
        layout = self.family.layout
        length = read_sampling_defaults(self.folder, layout.defaults).max_sequence_length
        return {} if layout.fixed_text_length else {"max_sequence_length": length}

    def sigmas(self) -> Tensor:
        """Return three sigmas, high, middle and low, of the family's own schedule."""
        return self.family.load_schedule(self.folder).at_size(64, 64).score_sigmas(30)[[100, 500, 800]]


def family_for(folder: Path, compute_dtype: torch.dtype) -> Family:
    """Return the family of a folder, with the schedule of its model."""
    family = family_class(family_of(folder))(CPU, compute_dtype)
    family.load_schedule(folder)
    return family


@pytest.fixture(scope="module", params=[*LAYOUTS, *VARIANTS])
def small(request, tiny_folder) -> Small:
    folder = tiny_folder(request.param)
    family = family_for(folder, torch.float32)
    length = read_sampling_defaults(folder, family.layout.defaults).max_sequence_length
    encoder = family.load_text_encoder(folder, length)
    return Small(family_of(folder), folder, family, family.load_network(folder, torch.float32), encoder)


def load_pipeline(folder: Path) -> DiffusionPipeline:
    """Load a folder as a user of diffusers would."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_pipeline(
    pipe: DiffusionPipeline, prompts: list[str], eps: Tensor, scale: float, kind: str, **options: Any
) -> Tensor:
    """Return what the family's own pipeline samples from `eps`; `kind` is its `output_type`."""
    call = {"prompt": list(prompts), "output_type": kind, **options}
    if not isinstance(pipe, QwenImagePipeline):
        return pipe(latents=eps, guidance_scale=scale, **call).images
    # Guidance needs a negative prompt. Latents are packed as tokens.
    call |= {"negative_prompt": [" "] * len(prompts)} if scale > 1 else {}
    height, width = eps.shape[-2:]
    tokens = pipe._pack_latents(eps, len(eps), 16, height, width)
    found = pipe(latents=tokens, true_cfg_scale=scale, **call).images
    return pipe._unpack_latents(found, 8 * height, 8 * width, 8)[:, :, 0] if kind == "latent" else found


def normalised_patches(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Return the latents that FLUX.2's pipeline samples, from those that its autoencoder decodes."""
    norm, patches = pipe.vae.bn, pixel_unshuffle(latents, 2)
    deviation = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return (patches - norm.running_mean[:, None, None]) / deviation[:, None, None]


SAMPLED = {"Flux2KleinPipeline": normalised_patches}  # pipelines whose "latent" is not what they sample


def pipeline_latents(pipe: DiffusionPipeline, prompts: list[str], eps: Tensor, scale: float, **options: Any) -> Tensor:
    """Return the latents that the family's own pipeline samples."""
    found = call_pipeline(pipe, prompts, eps, scale, "latent", **options)
    return SAMPLED.get(type(pipe).__name__, lambda pipe, latents: latents)(pipe, found)


@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)], ids=["square", "wide"])
def test_the_guided_teacher_samples_as_its_own_pipeline_does(small, size, steps):
    layout, eps = small.family.layout, small.noise(*size)
    pipe, options = load_pipeline(small.folder), small.text_options
    for scale in (layout.guidance.off, layout.defaults.guidance_scale):
        sampler, encoder = load_sampler(
            small.folder, CPU, steps=steps, guidance_scale=scale, height=size[0], width=size[1]
        )
        ours = sampler.latents(encoder.encode(PROMPTS), eps)
        more = {"height": size[0], "width": size[1], "num_inference_steps": steps}
        theirs = pipeline_latents(pipe, PROMPTS, eps, scale, **more, **options)
        assert relative(ours, theirs) <= exact(sampler.settings.sigmas)
        assert relative(sampler.latents(encoder.encode(PROMPTS[::-1]), eps), ours) > 0.05  # prompts matter


def test_decoded_images_are_the_pipelines(small):
    eps, options = small.noise(64, 64, count=1), small.text_options
    off = small.family.layout.guidance.off
    sampler, encoder = load_sampler(small.folder, CPU, steps=3, guidance_scale=off, height=64, width=64)
    ours = sampler.decoder.decode(sampler.latents(encoder.encode(PROMPTS[:1]), eps))
    pipe = load_pipeline(small.folder)
    call = {"num_inference_steps": 3, "height": 64, "width": 64, **options}
    theirs = call_pipeline(pipe, PROMPTS[:1], eps, off, "pt", **call)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.01


def one_by_one(text: TextEmbedding, predict: Callable[[int, TextEmbedding], Tensor]) -> Tensor:
    return torch.cat([predict(row, text.rows(row, row + 1)) for row in range(len(text))])


@torch.no_grad()
def test_a_prompt_gives_the_same_in_every_batch(small):
    """Prompts of different lengths together, one by one, and with the encoder's own batches."""
    family, eps, sigmas = small.family, small.noise(64, 64), small.sigmas()
    text, null = small.encoder.encode(PROMPTS), small.encoder.encode([family.layout.guidance.null_prompt])
    apart = TextEmbedding.concatenate([small.encoder.encode([prompt]) for prompt in PROMPTS])
    assert relative(apart.context, text.context) <= EXACT and apart.lengths == text.lengths
    together = family.predict(small.network, eps, sigmas, text)
    alone = one_by_one(text, lambda i, own: family.predict(small.network, eps[[i]], sigmas[[i]], own))
    assert relative(together, alone) <= EXACT
    scale = family.layout.defaults.guidance_scale
    guided = family.bind_guided(small.network, text, null, scale)(eps, sigmas)
    alone = one_by_one(text, lambda i, own: family.bind_guided(small.network, own, null, scale)(eps[[i]], sigmas[[i]]))
    assert relative(guided, alone) <= EXACT
    assert relative(guided, together) > 0.05  # guidance matters
    assert relative(family.predict(small.network, eps, sigmas.flip(0), text), together) > 0.05  # and so does the time


def test_the_cache_gives_the_encoders_embeddings_back(small, tmp_path):
    names, settings = small.family.layout.text_tensors, EmbeddingSettings("model", 77, "torch.float32")
    cached = cached_encoder(tmp_path, PROMPTS, settings, CPU, lambda: small.encoder, Processes(), names)
    ours, theirs = cached.encode(PROMPTS), small.encoder.encode(PROMPTS)
    assert relative(ours.context, theirs.context) <= EXACT and ours.lengths == theirs.lengths
    assert theirs.pooled is None or relative(ours.pooled, theirs.pooled) <= EXACT
    assert set(names) == set(theirs.to_cache())


def seen_times(network: nn.Module, call: Callable[[], Any]) -> Tensor:
    """Return the first tensor [B], one number a sample, that a part of the network gets in a call."""
    found: list[Tensor] = []

    def look(_: nn.Module, given: tuple[Any, ...]) -> None:
        found.extend(each for each in given if isinstance(each, Tensor) and each.shape == (len(TIMES),))

    handles = [part.register_forward_pre_hook(look) for part in network.modules() if part is not network]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found[0]


@torch.no_grad()
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["student", "teacher"])
def test_bf16_computes_the_same_and_rounds_no_time(small, weights):
    """Trained networks have fp32 weights, the teacher bf16 ones; both compute under autocast from fp32 times."""
    eps, sigmas, text = small.noise(64, 64), small.sigmas(), small.encoder.encode(PROMPTS)
    family = family_for(small.folder, torch.bfloat16)
    network = family.load_network(small.folder, weights)
    found = family.predict(network, eps, sigmas, text.map(torch.Tensor.bfloat16))
    assert found.dtype == torch.float32
    assert relative(found, small.family.predict(small.network, eps, sigmas, text)) < 0.06
    times = torch.tensor(TIMES)
    in_bf16 = seen_times(network, lambda: family.predict(network, eps, times, text))
    in_fp32 = seen_times(small.network, lambda: small.family.predict(small.network, eps, times, text))
    assert torch.equal(in_bf16, in_fp32) and in_bf16.dtype == torch.float32 and len(in_bf16.unique()) == 3


@pytest.mark.parametrize("count", ["1", "all"])
def test_recomputation_changes_no_gradient(small, count):
    text, eps, sigmas = small.encoder.encode(PROMPTS), small.noise(64, 64), small.sigmas()
    plain, recomputed = (small.family.load_network(small.folder, torch.float32) for _ in range(2))
    recompute_blocks(recomputed, small.family, count)
    for network in (plain, recomputed):
        small.family.predict(network.requires_grad_(True), eps, sigmas, text).square().mean().backward()
    pairs = list(zip(plain.named_parameters(), recomputed.parameters(), strict=True))
    without = {name for (name, parameter), _ in pairs if parameter.grad is None}
    assert without == set(small.family.layout.frozen(plain.config))  # DDP and resuming need the family to say so
    assert all(torch.equal(a.grad, b.grad) for (_, a), b in pairs if a.grad is not None)


@torch.no_grad()
def test_compiled_blocks_compute_the_same(small):
    text, eps, sigmas = small.encoder.encode(PROMPTS), small.noise(64, 64), small.sigmas()
    expected = small.family.predict(small.network, eps, sigmas, text)
    compiled = small.family.load_network(small.folder, torch.float32)
    compile_blocks(compiled, small.family.block_classes, backend="eager")
    assert relative(small.family.predict(compiled, eps, sigmas, text), expected) <= EXACT


def test_features_are_the_images_tokens(small):
    """A discriminator reads one token a patch of the image, whose number grows with the image and not with the text."""
    blocks = choose_blocks(small.family, small.network)
    counts = []
    for size in ((64, 64), (64, 96)):
        eps = small.noise(*size, count=1).requires_grad_(True)
        for prompt in PROMPTS[:2]:
            text = small.encoder.encode([prompt])
            features = small.family.features(small.network, blocks, eps, small.sigmas()[:1], text)
            counts.append([part.shape[1] for part in features])
    assert len(blocks) >= 2 and counts[0] == counts[1] and counts[2] == counts[3]
    assert all(2 * wide == 3 * square for square, wide in zip(counts[0], counts[2], strict=True))


def test_adapters_start_as_the_teacher_and_fit_what_small_files_say(small):
    config = Config()
    config.model.family, config.model.teacher_id, config.model.lora_rank = small.name, str(small.folder), 2
    networks, layout = load_networks(config, small.family), small.family.layout
    text, eps, sigmas = small.encoder.encode(PROMPTS), small.noise(64, 64), small.sigmas()
    expected = small.family.predict(small.network, eps, sigmas, text)
    for network in (networks.teacher, networks.student, networks.fake):
        with torch.no_grad():
            assert torch.equal(small.family.predict(network, eps, sigmas, text), expected)
    adapted = {name.partition(".lora_")[0] for name, _ in networks.student.named_parameters()}
    assert adapted == set(layout.adapted_layers(small.folder, layout.lora_targets))


@dataclass(frozen=True)
class Runs:
    """Runs of one family.

    Attributes:
        whole: 12 steps, all weights, with evaluation and two checkpoints.
        adapted: 6 steps of DMD-GAN with LoRA and its dropout, recomputation, caches of text and of teacher samples,
            and another attention.
    """

    flags: list[str]
    whole: Path
    adapted: Path


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory, tiny_scorers) -> Runs:
    """Train once for all tests below."""
    work = tmp_path_factory.mktemp(small.name)
    prompts = work / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    flags = [
        *("--family", small.name, "--teacher_id", str(small.folder), "--prompt_txt", str(prompts)),
        *("--height", "64", "--width", "96", "--teacher_infer_steps", "4", "--k_anchor", "2", "--batch_size", "2"),
        *("--stu_inference_steps", "2", "--per_train_fake_num", "2", "--report_to", "none", "--seed", "3"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--vis_every", "6"),
    ]
    scored = ["--clip_path", tiny_scorers["clip_path"], "--div_prompts", str(prompts), "--eval_prompts_limit", "2"]
    scored += ["--num_div_seeds", "2", "--eval_every", "12", "--eval_batch_size", "3"]
    whole, adapted = work / "whole", work / "adapted"
    length = ["--ckpt_every", "6", "--max_steps"]
    grid = ["--student_sigmas", numbers(small)]
    assert train.main([*flags, *grid, *scored, *length, "12", "--run_dir", str(whole)]) == 0
    lora = ["--method", "dmd_gan", "--lora_rank", "2", "--lora_alpha", "6", "--lora_dropout", "0.1"]
    lora += ["--lr_student", "1e-2", "--gradient_checkpointing", "--recomputed_blocks", "1"]
    lora += ["--cache_text_embeddings", str(work / "cache"), "--attention_backend", "_native_math"]
    lora += ["--teacher_cache", str(work / "samples"), "--teacher_cache_size", "3"]
    assert train.main([*flags, *lora, *length, "6", "--run_dir", str(adapted)]) == 0
    return Runs(flags, whole, adapted)


def numbers(small: Small) -> str:
    """Return a grid of two steps that no scheduler gives by itself."""
    sigmas = small.family.load_schedule(small.folder).at_size(64, 96).trailing_sigmas(3).tolist()
    return f"{sigmas[0]!r},{sigmas[2]!r}"


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_a_run_trains_scores_and_reports(runs, small):
    lines = records(runs.whole)
    steps = [line for line in lines if line["turn"] != "eval"]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(value is not None for line in lines for value in line.values())
    student = [line for line in steps if line["turn"] == "student"]
    assert len(student) == 4 and all(line["loss_div"] > 0 and line["grad_norm"] > 0 for line in student)
    scores = [line for line in lines if line["turn"] == "eval"]
    assert [line["step"] for line in scores] == [0, 12]
    assert (runs.whole / "report.html").is_file() and (runs.whole / "process_vis" / "latest.png").is_file()
    network = small.family.layout.network
    trained, teacher = (weights_of(place / network) for place in (runs.whole / "ckpts/latest/student", small.folder))
    assert sum(not torch.equal(trained[name], teacher[name]) for name in teacher) > 0.8 * len(teacher)


def test_a_resumed_run_is_bit_equal(runs, small, tmp_path):
    """The second half, continued from the checkpoint in the middle, ends in the same bytes."""
    parts = RunFolder.of(Path(shutil.copytree(runs.whole, tmp_path / "parts", symlinks=True)))
    shutil.rmtree(parts.checkpoint(12))
    parts.point(LATEST, parts.checkpoint(6))
    command = [*runs.flags, "--student_sigmas", numbers(small), "--ckpt_every", "6", "--eval_every", "0"]
    resume = ["--max_steps", "12", "--resume_from_checkpoint", "latest", "--run_dir", str(parts.root)]
    assert train.main([*command, *resume]) == 0
    files = [f"student/{small.family.layout.network}", "state"]
    ours, theirs = (
        {file.name: file.read_bytes() for part in files for file in (run / "ckpts/step_000012" / part).glob("*.saf*")}
        for run in (parts.root, runs.whole)
    )
    assert len(ours) == 4 and ours == theirs


def student_latents(run: Path, eps: Tensor) -> tuple[Tensor, SamplerSettings]:
    """Return what our sampler makes of a run's student, and how it samples."""
    sampler, encoder = load_sampler(run, CPU)
    return sampler.latents(encoder.encode(PROMPTS), eps), sampler.settings


def sample_as_told(small: Small, folder: Path, pipe: DiffusionPipeline, eps: Tensor) -> Tensor:
    """Return what a pipeline samples with the options in a folder's dpdmd.json, as docs/export.md describes them."""
    how = json.loads((folder / "dpdmd.json").read_text())
    options = {name: how[name] for name in ("height", "width", *small.text_options)}
    given = how["sigmas_argument"]
    options |= {"sigmas": given} if given else {"num_inference_steps": how["steps"]}
    return pipeline_latents(pipe, PROMPTS, eps, how["guidance_scale"], **options)


def test_the_exported_student_samples_in_diffusers_as_ours_does(runs, small):
    eps = small.noise(64, 96)
    student = runs.whole / "ckpts" / "latest" / "student"
    ours, settings = student_latents(runs.whole, eps)
    assert settings.guidance_scale == small.family.layout.guidance.off
    assert relative(sample_as_told(small, student, load_pipeline(student), eps), ours) <= exact(settings.sigmas)


def test_a_lora_file_changes_the_teacher_in_diffusers_as_ours_does(runs, small, tmp_path):
    """Through the pipeline's own loader, and merged by `dpdmd.export`."""
    eps, folder = small.noise(64, 96), runs.adapted / "ckpts" / "latest" / "lora"
    ours, settings = student_latents(runs.adapted, eps)
    pipe = load_pipeline(small.folder)
    pipe.scheduler = type(pipe.scheduler).from_pretrained(folder, subfolder="scheduler")
    before = sample_as_told(small, folder, pipe, eps)
    pipe.load_lora_weights(folder)
    assert relative(sample_as_told(small, folder, pipe, eps), ours) <= exact(settings.sigmas)
    assert relative(before, ours) > 0.01  # the adapter learnt something
    assert export.main(["--model", str(runs.adapted), "--out", str(tmp_path / "merged")]) == 0
    merged, _ = student_latents(tmp_path / "merged", eps)
    assert relative(merged, ours) <= 10 * EXACT  # weights are added once, instead of outputs


def test_images_are_generated_from_a_run(runs, tmp_path):
    command = ["--model", str(runs.whole), "--prompt", PROMPTS[0], "--num_images", "2", "--out", str(tmp_path)]
    assert generate.main(command) == 0
    assert len(list(tmp_path.glob("00000_*.png"))) == 2


def test_the_demo_shows_the_samplers_images(runs, small):
    """Teacher and student side by side, from the noises of `dpdmd.generate`."""
    given = build_parser().parse_args(["--model", str(runs.whole), "--batch_size", "1"])
    models = load_models(check_models(given, find_sources(given), CPU))
    for result in Comparison(models, [], 1).sample(PROMPTS[1], [3, 4]):
        path, options = (runs.whole, {}) if result.index else (small.folder, {"steps": 4, "height": 64, "width": 96})
        sampler, encoder = load_sampler(path, CPU, **options)
        for number, seed in enumerate([3, 4]):
            expected = to_pil(sampler.images(encoder.encode([PROMPTS[1]]), [(0, 0)], seed))[0]
            assert ImageChops.difference(result.images[number], expected).getextrema() == ((0, 0),) * 3


def test_a_root_program_scores_a_run(runs, tiny_scorers, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    program = runpy.run_path(str(ROOT / "test_diversity.py"))["PROGRAM"]
    command = ["--model", str(runs.whole), "--prompts_txt", str(prompts), "--num_samples", "2"]
    command += ["--dino_path", tiny_scorers["dino_path"], "--clip_path", tiny_scorers["clip_path"]]
    assert program.main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert scores["div_dino"]["mean"] > 0 and scores["div_clip"]["mean"] > 0


def test_the_doctor_says_ok(runs, tmp_path, capsys):
    assert doctor.main([*runs.flags, "--out", str(tmp_path / "doctor")]) == 0, capsys.readouterr().out


def another_pipeline(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="SomePipeline")


def another_scheduler(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")


def karras_sigmas(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", use_karras_sigmas=True)


def no_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def no_tokenizer(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        file.unlink()


def lost_blocks(folder: Path) -> None:
    layout = next(layout for layout in LAYOUTS.values() if layout.pipeline in (folder / "model_index.json").read_text())
    weights = folder / layout.network / "diffusion_pytorch_model.safetensors"
    prefix = next(iter(layout.blocks(layout.network_config(folder))))
    save_file({name: value for name, value in load_file(weights).items() if not name.startswith(prefix)}, weights)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (another_pipeline, "model_index.json is of a SomePipeline"),
        (another_scheduler, "is of a DDIMScheduler"),
        (karras_sigmas, "use_karras_sigmas"),
        (no_autoencoder, "vae is missing"),
        (no_tokenizer, "tokenizer holds no tokenizer"),
        (lost_blocks, "its weights have 0 blocks, its config.json "),
    ],
)
def test_a_wrong_folder_is_one_line(small, tmp_path, capsys, damage, says):
    folder, prompts = Path(shutil.copytree(small.folder, tmp_path / "copy")), tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    damage(folder)
    command = ["--family", small.name, "--teacher_id", str(folder), "--prompt_txt", str(prompts)]
    assert train.main([*command, "--height", "64", "--width", "64", "--run_dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"dpdmd.train: error: --teacher_id {folder}: ") and says in line
    variant = find_variant(small.name, small.folder)
    assert (variant.repository if variant else small.family.layout.repository) in line and not (
        tmp_path / "run"
    ).exists()
