"""Checks of a model's folder: whole folders pass, in every form in which they are published; others are rejected."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from edit_models import DIFFUSION, MODEL, rewrite_weights, set_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpdmd.models.checks.contents import check_contents
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.registry import LAYOUTS
from dpdmd.sampling.load_model import load_sampler

CPU = torch.device("cpu")
LAYOUT = LAYOUTS["sdxl"]
Weights = dict[str, Tensor]


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "is of a StableDiffusionXLImg2Img"),
        ("model_index.json", {"text_encoder": [None, None]}, "model_index.json lacks text_encoder"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, but a Euler"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type 'sample' in place of 'epsilon' or 'v_prediction'",
        ),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "linspace"}, "in place of 'leading' or 'trailing'"),
        ("scheduler/scheduler_config.json", {"steps_offset": 2}, "steps_offset 2 in place of 1 or 0"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "the noise says nothing about the image"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end 0.02 in place of 0.012"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 3]}, "weights have 2 blocks, its config.json 3"),
        ("unet/config.json", {"cross_attention_dim": 64}, "attn2.to_k.weight has shape (32, 128)"),
        ("unet/config.json", {"in_channels": 9}, "conv_in.weight has shape (16, 4, 3, 3)"),
        ("vae/config.json", {"block_out_channels": [16, 32, 32]}, "a latent spans 4 pixels, not 8"),
    ],
)
def test_another_models_folder_is_rejected(copied, file, values, says):
    """The error names the flag, the file, and where to get the right one."""
    folder = copied("sdxl")
    set_json(folder / file, **values)
    with pytest.raises(ValueError) as error:
        check_folder(LAYOUT, folder, "--teacher_id")
    assert says in str(error.value) and str(error.value).startswith(f"--teacher_id {folder}: ")
    assert "stabilityai/stable-diffusion-xl-base-1.0" in str(error.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(copied, part):
    folder = copied("sdxl")
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"{part} is missing"):
        check_folder(LAYOUT, folder, "--teacher_id")


def in_shards(file: Path, count: int) -> None:
    """Split a weights file as the libraries do."""
    weights, placed = load_file(file), {}
    for shard in range(count):
        name = f"{file.stem}-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = {key: weights[key] for key in list(weights)[shard::count]}
        save_file(part, file.with_name(name), metadata={"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()


def as_bf16(weights: Weights) -> None:
    weights.update({name: value.bfloat16() for name, value in weights.items()})


def as_first_clips(weights: Weights) -> None:
    """Use the first CLIPs' names: all start with text_model, and the positions are stored."""
    for name in [name for name in weights if not name.startswith(("text_model.", "text_projection."))]:
        weights[f"text_model.{name}"] = weights.pop(name)
    weights["text_model.embeddings.position_ids"] = torch.arange(10)[None]


def as_first_released(weights: Weights) -> None:
    """Use the names in the attention of the first autoencoders."""
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        for name in [name for name in weights if new in name]:
            weights[name.replace(new, old)] = weights.pop(name)


@pytest.mark.parametrize("family", LAYOUTS)
def test_folders_as_they_are_published_are_whole(copied, family):
    """Shards, half precision, stored buffers, a tied weight under both its names, and old names all pass and load."""
    folder, layout = copied(family), LAYOUTS[family]
    expected = load_sampler(folder, CPU, steps=2, height=64, width=64)[1].encode(["a red circle"])
    if layout.classes["vae"] == "AutoencoderKL":
        rewrite_weights(folder / "vae" / DIFFUSION, as_first_released)
        assert any(
            "proj_attn" in name for name in load_file(folder / "vae" / DIFFUSION)
        )  # there is something to rename
    encoder = folder / "text_encoder" / MODEL
    if layout.classes["text_encoder"].startswith("CLIP"):
        rewrite_weights(encoder, as_first_clips)
    in_shards(encoder, 3)
    if family == "sd35":
        t5 = folder / "text_encoder_3" / MODEL
        rewrite_weights(
            t5, lambda weights: weights.update({"encoder.embed_tokens.weight": weights["shared.weight"].clone()})
        )
        in_shards(t5, 2)
    check_folder(layout, folder, "--teacher_id")
    check_contents(layout, folder, "--teacher_id")
    sampler, encoder = load_sampler(folder, CPU, steps=2, height=64, width=64)
    assert torch.equal(encoder.encode(["a red circle"]).context, expected.context)
    assert not any(value.is_meta for value in sampler.network.state_dict().values())
    if "text_encoder_2" in layout.classes:
        rewrite_weights(folder / "text_encoder_2" / MODEL, as_bf16)
    rewrite_weights(folder / layout.network / DIFFUSION, as_bf16)
    check_contents(layout, folder, "--teacher_id")


def test_a_t5_may_name_its_embedding_by_its_other_name(copied):
    folder = copied("sd35")
    file = folder / "text_encoder_3" / MODEL
    rewrite_weights(file, lambda weights: weights.update({"encoder.embed_tokens.weight": weights.pop("shared.weight")}))
    check_contents(LAYOUTS["sd35"], folder, "--teacher_id")


@pytest.mark.parametrize(
    ("family", "encoder", "entry", "kind"),
    [
        ("sd35", "text_encoder_3", "d_model", "a token's embedding"),
        ("sd35", "text_encoder_2", "projection_dim", "the pooled embedding"),
        ("sdxl", "text_encoder", "hidden_size", "a token's embedding"),
        ("sdxl", "text_encoder_2", "projection_dim", "the pooled embedding"),
        *((family, "text_encoder", "hidden_size", "a token's embedding") for family in tuple(LAYOUTS)[2:]),
    ],
)
def test_a_text_encoder_of_another_width_is_rejected(copied, family, encoder, entry, kind):
    """It would fail in the first call of the network."""
    folder, layout = copied(family), LAYOUTS[family]
    network = getattr(transformers, layout.classes[encoder])
    changed = network.config_class.from_pretrained(folder / encoder)
    text = changed.get_text_config()
    setattr(text, entry, 2 * getattr(text, entry))
    shutil.rmtree(folder / encoder)
    network(changed).save_pretrained(folder / encoder)
    check_folder(layout, folder, "--teacher_id")
    with pytest.raises(ValueError, match=f"^--teacher_id .*: {kind} has .*, but the {layout.network} reads"):
        check_contents(layout, folder, "--teacher_id")


def test_nothing_large_is_read(copied, monkeypatch):
    """All ranks check at once, files of many GB."""
    folder, layout = copied("sd35"), LAYOUTS["sd35"]

    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("diffusers.models.modeling_utils.load_state_dict", refuse)
    monkeypatch.setattr("torch.nn.Module.load_state_dict", refuse)
    check_contents(layout, folder, "--teacher_id")
