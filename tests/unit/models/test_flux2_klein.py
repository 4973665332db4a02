"""FLUX.2-klein's own parts: its shift, text encoder, latents, layers and original names, against diffusers."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

from dpdmd.config.options import ModelConfig
from dpdmd.models.base import TextEmbedding
from dpdmd.models.checks.contents import check_contents
from dpdmd.models.flux2_klein.family import Flux2Klein
from dpdmd.models.flux2_klein.layout import LAYOUT, shift_of
from dpdmd.models.flux2_klein.original_layout import original_transformer
from dpdmd.models.layout import count_numbers
from dpdmd.models.lora import share
from dpdmd.models.registry import adapters
from dpdmd.models.tensor_files import in_memory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("flux2_klein")


@pytest.fixture(scope="module")
def family():
    return Flux2Klein(CPU, torch.float32)


@pytest.mark.parametrize("steps", [1, 4, 50, 1000])
@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (1024, 1072), (2048, 2048)])  # 1072: 4288 tokens
def test_the_shift_is_the_pipelines(size, steps):
    tokens = size[0] * size[1] // 256
    expected = torch.tensor(compute_empirical_mu(tokens, steps), dtype=torch.float64).exp()
    assert shift_of(size[0] * size[1], steps) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("tied", [None, True, False])
def test_only_the_layers_that_are_read_are_loaded_and_counted(family, folder, tmp_path, tied):
    """Of a bare Qwen3, and of a causal one, as in the official folders, whose head is a weight of its own or not."""
    place, prompts = Path(shutil.copytree(folder, tmp_path / "klein")), ["a red circle", ""]
    whole = Flux2KleinPipeline.from_pretrained(folder)
    if tied is not None:
        whole.text_encoder.config.tie_word_embeddings = tied
        causal = Qwen3ForCausalLM(whole.text_encoder.config)
        causal.model.load_state_dict(whole.text_encoder.state_dict())
        whole.register_modules(text_encoder=causal)
        shutil.rmtree(place)
        whole.save_pretrained(place)
        check_contents(LAYOUT, place, "--teacher_id")
    encoder = family.load_text_encoder(place, 96)
    network = encoder.pipe.text_encoder
    assert len(network.layers) == 28 and whole.text_encoder.config.num_hidden_layers == 29
    assert sum(p.numel() for p in network.parameters()) == count_numbers(LAYOUT.loaded_shapes(place, "text_encoder"))
    expected, _ = whole.encode_prompt(prompts, max_sequence_length=96)
    assert torch.equal(encoder.encode(prompts).context, expected)


def test_latents_are_normalised_patches_of_the_autoencoders(family, folder):
    """What the pipeline makes of an image's latents, the decoder turns back, with gradient."""
    decoder, pipe = family.load_image_decoder(folder), Flux2KleinPipeline.from_pretrained(folder)
    assert decoder.latent_shape(64, 96) == (32, 4, 6)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = pipe._encode_vae_image(image, torch.Generator())
        expected = pipe.vae.decode(pipe.vae.encode(image).latent_dist.mode()).sample / 2 + 0.5
    latents.requires_grad_(True)
    found = decoder.decode_with_gradient(latents)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found.square().mean().backward()
    assert (latents.grad != 0).all()


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("attn.to_out", [f"single_transformer_blocks.{i}.attn.to_out" for i in range(2)]),
        ("to_out", [f"single_transformer_blocks.{i}.attn.to_out" for i in range(2)]),
        ("to_out.0", [f"transformer_blocks.{i}.attn.to_out.0" for i in range(2)]),
        ("single_transformer_blocks.1.attn.to_out,to_add_out", None),
    ],
)
def test_the_layers_that_get_an_adapter_are_those_of_the_header(family, folder, given, layers):
    """`attn.to_out` is a layer of a single block, and in a double block a list, which peft would reject."""
    pair = adapters(ModelConfig(family="flux2_klein", teacher_id=str(folder), lora_rank=2, lora_targets=given))
    _, student, _ = share(family.load_network(folder, torch.float32), pair.student, pair.fake, 0)
    found = {name.partition(".lora_")[0] for name, _ in student.named_parameters()}
    assert found == LAYOUT.adapted_layers(folder, given.split(",")).keys()
    assert found == LAYOUT.adapted_layers(folder, pair.student.targets).keys()
    assert layers is None or found == set(layers)


def test_the_image_is_the_end_of_a_single_blocks_tokens(family):
    z, text = torch.zeros(1, 32, 2, 3), torch.arange(5.0).reshape(1, 5, 1)
    prompts = TextEmbedding(text)
    image = torch.arange(6.0).reshape(1, 6, 1)
    assert torch.equal(family.image_tokens((text, image), z, prompts), image)
    assert torch.equal(family.image_tokens(torch.cat([text, image], dim=1), z, prompts), image)


def test_diffusers_reads_the_original_names(family, folder, tmp_path):
    network = family.load_network(folder, torch.float32)
    original = {name: value.read() for name, value in original_transformer(in_memory(network.state_dict())).items()}
    for name in (  # of black-forest-labs' own files
        "img_in.weight",
        "txt_in.weight",
        "time_in.in_layer.weight",
        "double_stream_modulation_img.lin.weight",
        "single_stream_modulation.lin.weight",
        "double_blocks.1.img_attn.qkv.weight",
        "double_blocks.1.txt_attn.norm.key_norm.scale",
        "double_blocks.1.txt_mlp.2.weight",
        "single_blocks.1.linear1.weight",
        "single_blocks.1.norm.query_norm.scale",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
    ):
        assert name in original
    save_file({name: value.contiguous() for name, value in original.items()}, tmp_path / "klein.safetensors")
    options = {"config": str(folder), "subfolder": "transformer", "local_files_only": True}
    again = Flux2Transformer2DModel.from_single_file(str(tmp_path / "klein.safetensors"), **options)
    expected = network.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
