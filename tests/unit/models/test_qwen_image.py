"""What Qwen-Image alone has: a template cut off by tokens, a video autoencoder, norms of tokens, a dynamic shift."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from safetensors.torch import load_file, save_file
from small_models import build_qwen_tokenizer

from dpdmd.config.image_sizes import ImageSize
from dpdmd.models.checks.contents import check_contents
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.layout import count_numbers
from dpdmd.models.qwen_image.family import QwenImage, pack, unpack
from dpdmd.models.qwen_image.layout import LAYOUT, PROMPT_START, START_TOKENS, read_schedule
from dpdmd.models.sampling_defaults import SamplingDefaults

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large blue square on a grey background"]
SIZE = ImageSize(1024, 768)


@pytest.fixture
def folder(tiny_folder) -> Path:
    return tiny_folder("qwen_image")


@pytest.fixture
def family() -> QwenImage:
    return QwenImage(CPU, torch.float32)


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_template_is_the_pipelines():
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
    pipe = QwenImagePipeline(**parts)
    assert pipe.prompt_template_encode.startswith(PROMPT_START + "{}")
    assert pipe.prompt_template_encode_start_idx == START_TOKENS


def test_another_tokenizer_is_an_error(copied):
    folder = copied("qwen_image")
    check_contents(LAYOUT, folder, "--teacher_id")
    build_qwen_tokenizer().save_pretrained(folder / "tokenizer")
    place = folder / "tokenizer"
    says = rf"^--teacher_id {folder}: {place}: its tokenizer makes \d+ tokens of the template .* cuts off 34"
    with pytest.raises(ValueError, match=says):
        check_contents(LAYOUT, folder, "--teacher_id")


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_only_the_language_model_is_loaded(family, copied, prefix):
    """Under both names that versions of transformers give its weights."""
    folder = copied("qwen_image")
    expected = family.load_text_encoder(folder, 96).encode(PROMPTS)
    path = folder / "text_encoder" / "model.safetensors"
    renamed = {
        prefix + name.removeprefix("model.") if name.startswith("model.") else name: value
        for name, value in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})
    encoder = family.load_text_encoder(folder, 96)
    assert torch.equal(encoder.encode(PROMPTS).context, expected.context)
    loaded = sum(parameter.numel() for parameter in encoder.pipe.text_encoder.parameters())
    whole = count_numbers(LAYOUT.weight_shapes(folder, "text_encoder"))
    assert loaded == count_numbers(LAYOUT.loaded_shapes(folder, "text_encoder")) < whole


def test_a_missing_weight_of_the_language_model_is_an_error(copied):
    folder = copied("qwen_image")
    path = folder / "text_encoder" / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "layers.1.mlp.up" not in name}, path)
    with pytest.raises(ValueError, match=r"^--teacher_id .*layers\.1\.mlp\.up_proj\.weight"):
        check_contents(LAYOUT, folder, "--teacher_id")


def test_the_decoder_has_a_gradient_where_the_library_clamps(family, folder):
    decoder = family.load_image_decoder(folder)
    assert decoder.latent_shape(64, 96) == (16, 8, 12)
    with torch.no_grad():
        decoder.vae.decoder.conv_out.weight.mul_(20)
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = decoder.decode_with_gradient(latents)
    config = decoder.vae.config
    mean, deviation = (torch.tensor(each)[:, None, None, None] for each in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        theirs = decoder.vae.decode(latents[:, :, None] * deviation + mean).sample[:, :, 0] / 2 + 0.5
    torch.testing.assert_close(images.detach().clamp(0, 1), theirs)
    beyond = (images.detach() < 0) | (images.detach() > 1)
    assert beyond.any()
    (gradient,) = torch.autograd.grad(images[beyond].sum(), latents)
    assert gradient.abs().max() > 0


def test_guidance_keeps_the_norm_of_each_token(family):
    draw = torch.Generator().manual_seed(0)
    unconditional, conditional = (torch.randn(2, 16, 4, 6, generator=draw) for _ in range(2))
    tokens = pack(conditional)
    assert tokens.shape == (2, 6, 64) and torch.equal(unpack(tokens, 4, 6), conditional)
    assert torch.equal(tokens, QwenImagePipeline._pack_latents(conditional, 2, 16, 4, 6))
    guided = family.guide(unconditional, conditional, 4.0)
    plain = unconditional + 4.0 * (conditional - unconditional)
    torch.testing.assert_close(pack(guided).norm(dim=-1), tokens.norm(dim=-1))
    direction = torch.nn.functional.cosine_similarity(pack(guided), pack(plain), dim=-1)
    torch.testing.assert_close(direction, torch.ones(2, 6))


def test_a_copy_of_a_network_keeps_its_own_times(family, folder):
    network = family.load_network(folder, torch.float32)
    text, z = family.load_text_encoder(folder, 96).encode(PROMPTS), torch.randn(2, 16, 4, 4)
    other = copy.deepcopy(network)
    with torch.no_grad():
        expected = family.predict(network, z, torch.tensor([0.9, 0.3]), text)
        family.predict(network, z, torch.tensor([0.1, 0.2]), text)
        assert torch.equal(family.predict(other, z, torch.tensor([0.9, 0.3]), text), expected)


@pytest.mark.parametrize("values", [{}, {"use_dynamic_shifting": False, "shift": 3.0}, {"shift_terminal": None}])
@pytest.mark.parametrize("steps", [2, 4, 50])
def test_the_grid_is_the_schedulers(family, copied, values, steps):
    """Also that of a scheduler with one shift, or without a last sigma."""
    folder = copied("qwen_image")
    rewrite(folder / "scheduler" / "scheduler_config.json", **values)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    even = torch.linspace(1.0, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=even, mu=calculate_shift(SIZE.height * SIZE.width // 256, 256, 8192, 0.5, 0.9))
    ours = read_schedule(folder).at_size(*SIZE).default_sigmas(steps)
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(family.library_sigmas(folder, steps, SIZE), scheduler.sigmas)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"time_shift_type": "linear"}, "sets time_shift_type linear, which this family does not use"),
        ({"shift_terminal": 2}, "sets shift_terminal 2.0, which must be a number between 0 and 1"),
        ({"max_shift": "0.9"}, "sets max_shift '0.9', which must be a number"),
        ({"base_image_seq_len": 8192}, "sets base_image_seq_len and max_image_seq_len to 8192, which must differ"),
        ({"use_dynamic_shifting": False, "shift": 0}, "sets shift 0, which must be a number from 0.001 to 1000"),
        ({"max_image_seq_len": 10**400}, r"sets max_image_seq_len 10+\.\.\. \(401 digits\), which must be a number"),
        ({"max_shift": 800}, "sets max_shift 800, which must be a number from -6.91 to 6.908"),
        ({"use_beta_sigmas": True}, "sets use_beta_sigmas, which this family does not use"),
    ],
)
def test_a_scheduler_that_is_not_reproduced_is_an_error(copied, values, says):
    folder = copied("qwen_image")
    rewrite(folder / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(ValueError, match=says):
        check_folder(LAYOUT, folder, "--teacher_id")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"latents_std": [1.0] * 15}, "sets latents_std .* which must be 16 numbers"),
        ({"latents_std": [0.0] * 16}, "sets latents_std .* which must be above 0"),
        ({"latents_mean": "0"}, "sets latents_mean '0', which must be 16 numbers"),
        ({"latents_mean": None}, "sets latents_mean None, which must be 16 numbers"),
        ({"latents_mean": [10**400] * 16}, "sets latents_mean .* which must be 16 numbers"),
        ({"z_dim": 8}, "sets latents_mean .* which must be 8 numbers"),
        (
            {"z_dim": 8, "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
            "its latents have 8 channels, the transformer's 16",
        ),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_an_error(copied, values, says):
    folder = copied("qwen_image")
    rewrite(folder / "vae" / "config.json", **values)
    with pytest.raises(ValueError, match=f"{folder / 'vae' / 'config.json'}:? {says}"):
        check_folder(LAYOUT, folder, "--teacher_id")


def test_a_shift_that_overflows_is_an_error(copied):
    """It grows with the image, and here by a factor of 1.5 from one token to the next."""
    folder = copied("qwen_image")
    rewrite(folder / "scheduler" / "scheduler_config.json", base_image_seq_len=8191)
    with pytest.raises(
        ValueError, match=r"by its base_shift and max_shift, an image of \d+ tokens has the shift e\^-\d"
    ):
        read_schedule(folder).at_size(*SIZE).default_sigmas(4)


def test_a_student_of_one_step_has_a_scheduler_that_makes_it(family, folder, tmp_path):
    """The model's own scheduler would divide 0 by 0."""
    grid = tuple(family.load_schedule(folder).at_size(*SIZE).default_sigmas(1).tolist())
    defaults = SamplingDefaults(steps=1, sigmas=grid, height=SIZE.height, width=SIZE.width)
    family.export_scheduler(tmp_path, folder, defaults).write(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    assert family.library_sigmas(tmp_path).tolist() == [1.0, 0.0] == list(grid)
    assert family.own_values(family.load_schedule(tmp_path)) == family.own_values(family.load_schedule(folder))
