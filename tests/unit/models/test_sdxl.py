"""The family SDXL on a small random pipeline: text, the network's conditions, the sampler and the decoder."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from edit_models import set_json

from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sdxl.family import SDXL
from dpdmd.sampling.load_model import load_sampler
from dpdmd.utils.rng import normal_per_sample

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large square on a white background"]
SCALE = 8.0
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def pipe(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    """Load diffusers' pipeline from the same folder."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_text_is_diffusers_own_and_the_empty_prompt_is_zeros(tiny_sdxl, pipe):
    """The context is both CLIPs' side by side, pooled is the second's; "" anywhere in a batch gives zeros."""
    encoder = SDXL(CPU, torch.float32).load_text_encoder(tiny_sdxl, 10)
    ours = encoder.encode([PROMPTS[0], "", PROMPTS[1]])
    context, empty, pooled, empty_pooled = pipe.encode_prompt(PROMPTS, device=CPU, do_classifier_free_guidance=True)
    # our batch has one row more, and some CPUs then sum in another order
    encoded = (ours.context[[0, 2]], ours.pooled[[0, 2]])
    torch.testing.assert_close(encoded, (context, pooled), rtol=0, atol=1e-5)
    assert torch.equal(ours.context[1], empty[0]) and torch.equal(ours.pooled[1], empty_pooled[0])
    assert not ours.context[1].any() and not ours.pooled[1].any()


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 61), ("leading", 1000)])
def test_a_student_with_more_steps_than_the_default_grid_can_have_is_exported(tiny_sdxl, tmp_path, spacing, steps):
    """On the grid "trailing". The first checkpoint would be the first to fail."""
    source, student = Path(shutil.copytree(tiny_sdxl, tmp_path / "source")), tmp_path / "student"
    set_json(source / "scheduler" / "scheduler_config.json", timestep_spacing=spacing)
    family = SDXL(CPU, torch.float32)
    schedule = family.load_schedule(source)
    with pytest.raises(ValueError):
        schedule.default_sigmas(steps)
    grid = tuple(schedule.trailing_sigmas(steps).tolist())
    family.export_scheduler(student, source, SamplingDefaults(steps=steps, sigmas=grid)).write(student)
    shutil.copytree(source, student, dirs_exist_ok=True, ignore=shutil.ignore_patterns("scheduler"))
    torch.testing.assert_close(family.library_sigmas(student), torch.tensor(grid), rtol=1e-5, atol=1e-6)


def test_the_empty_prompt_has_its_own_embedding_if_the_folder_says_so(tiny_sdxl, tmp_path):
    """Guidance uses the embedding that the pipeline uses, by force_zeros_for_empty_prompt in model_index.json."""
    folder = Path(shutil.copytree(tiny_sdxl, tmp_path / "real"))
    set_json(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    ours = SDXL(CPU, torch.float32).load_text_encoder(folder, 10).encode(["", PROMPTS[0]])
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    with torch.no_grad():
        theirs = pipe.encode_prompt(PROMPTS[:1], device=CPU, do_classifier_free_guidance=True)
    torch.testing.assert_close((ours.context[:1], ours.pooled[:1]), (theirs[1], theirs[3]), rtol=0, atol=1e-5)
    assert ours.context[0].abs().mean() > 0.1 and ours.pooled[0].abs().mean() > 0.1


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_the_network(tiny_sdxl, compute_dtype):
    """Times are whole and fp32, sizes are in pixels (height first); the network computes in `compute_dtype`."""
    family, calls = SDXL(CPU, compute_dtype), []
    network = family.load_network(tiny_sdxl, torch.float32)
    network.register_forward_pre_hook(lambda *arguments: calls.append(arguments[2]), with_kwargs=True)
    network.mid_block.attentions[0].register_forward_hook(lambda *arguments: calls.append(arguments[2]))
    text = family.load_text_encoder(tiny_sdxl, 10).encode(PROMPTS)
    sigma = family.load_schedule(tiny_sdxl).score_sigmas(50)[[0, 499]]
    prediction = family.predict(network, torch.randn(2, 4, 6, 10), sigma, text)
    given, inside = calls
    assert given["timestep"].dtype == torch.float32 and given["timestep"].tolist() == [999, 500]
    assert given["added_cond_kwargs"]["time_ids"].tolist() == [[48, 80, 0, 0, 48, 80]] * 2
    assert torch.equal(given["added_cond_kwargs"]["text_embeds"], text.pooled)
    assert prediction.dtype == torch.float32 and prediction.shape == (2, 4, 6, 10)
    assert inside[0].dtype == compute_dtype


@pytest.mark.parametrize("guidance", [1.0, SCALE])
def test_the_sampler_agrees_with_diffusers(tiny_sdxl, pipe, guidance):
    """Grid, times, guidance with zeros, size conditions, step and decoding equal the pipeline's."""
    sampler, encoder = load_sampler(tiny_sdxl, CPU, steps=3, guidance_scale=guidance)
    eps = normal_per_sample(SHAPE, 0, "picture", 0, [0, 1])
    ours = sampler.latents(encoder.encode(PROMPTS), eps)
    call = {"num_inference_steps": 3, "guidance_scale": guidance, "height": 64, "width": 64}
    theirs = pipe(PROMPTS, latents=eps, output_type="latent", **call).images
    assert (ours - theirs).abs().max() < 2e-4 and theirs.std() > 1  # x0 has a deviation of 3 to 5
    decoded = pipe(PROMPTS, latents=eps, output_type="pt", **call).images
    assert (sampler.decoder.decode(ours) - decoded).abs().max() < 1e-4 and decoded.std() > 0.05


def test_bf16_images_are_close_to_fp32_images(tiny_sdxl):
    """--bf16 also decodes in bf16, which has the range of fp32 (fp16 would overflow) and three digits."""
    latents = 5 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        SDXL(CPU, dtype).load_image_decoder(tiny_sdxl).decode(latents) for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and 0 < (exact - rounded).abs().max() < 0.05
