"""The identity of a model: what changes it, and what does not."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dpdmd.models.identity import changed_parts, identify, identify_pipeline, identify_text, same_content
from dpdmd.models.registry import LAYOUTS

SD35 = LAYOUTS["sd35"]


@pytest.fixture
def model(tiny_pipeline, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


def scale(weights: Path, factor: float) -> None:
    save_file({name: value * factor for name, value in load_file(weights).items()}, weights)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_copy_is_the_same_model(model, tiny_pipeline):
    assert identify_pipeline(SD35, model) == identify_pipeline(SD35, tiny_pipeline)


@pytest.mark.parametrize(
    ("change", "parts", "text"),
    [
        (lambda m: scale(m / "text_encoder_3" / "model.safetensors", 1.5), ["text_encoder_3"], True),
        (lambda m: scale(m / "transformer" / "diffusion_pytorch_model.safetensors", 1.5), ["transformer"], False),
        (lambda m: edit(m / "text_encoder" / "config.json", hidden_act="gelu"), ["text_encoder"], True),
        (lambda m: edit(m / "tokenizer_2" / "tokenizer_config.json", x=1), ["tokenizer_2"], True),
        (lambda m: edit(m / "scheduler" / "scheduler_config.json", shift=2.0), ["scheduler"], False),
        (lambda m: edit(m / "vae" / "config.json", scaling_factor=2.0), ["vae"], False),
        (lambda m: edit(m / "dpdmd.json", guidance_scale=2.0), ["dpdmd.json"], False),
        (lambda m: edit(m / "model_index.json", vae=[None, None]), ["model_index.json", "vae"], False),
        (lambda m: edit(m / "model_index.json", force_zeros=True), ["model_index.json"], True),
    ],
)
def test_every_file_that_decides_counts(model, change, parts, text):
    """Only text encoders, tokenizers and options of the whole pipeline decide the embeddings."""
    before, text_before = identify_pipeline(SD35, model), identify_text(SD35, model)
    change(model)
    assert changed_parts(before, identify_pipeline(SD35, model)) == parts
    assert (identify_text(SD35, model) != text_before) == text


def test_what_is_not_read_does_not_count(model):
    """Weights of another precision, another program's formats, and the T5 with --no_t5."""
    before = identify_pipeline(SD35, model), identify_text(SD35, model, no_t5=True)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "README.md"):
        (model / "transformer" / name).write_bytes(b"something")
    assert identify_pipeline(SD35, model) == before[0]
    scale(model / "text_encoder_3" / "model.safetensors", 1.5)
    assert identify_text(SD35, model, no_t5=True) == before[1]


def test_every_shard_counts(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    (tmp_path / "one.safetensors").write_text("1")
    before = identify({"model": tmp_path, "none": None})
    assert list(before) == ["model"]
    (tmp_path / "other.safetensors").write_text("2")
    assert identify({"model": tmp_path}) == before
    (tmp_path / "one.safetensors").write_text("2")
    assert identify({"model": tmp_path}) != before


def test_a_checkpoint_in_one_file(tmp_path):
    """Whole folders of weights in other formats, as scorers have them, count as they are."""
    (tmp_path / "reward.pt").write_text("1")
    before = identify({"file": tmp_path / "reward.pt", "folder": tmp_path})
    (tmp_path / "reward.pt").write_text("2")
    assert changed_parts(before, identify({"file": tmp_path / "reward.pt", "folder": tmp_path})) == ["file", "folder"]
    with pytest.raises(ValueError, match=r"none\.pt cannot be read"):
        identify({"file": tmp_path / "none.pt"})


def test_the_same_content_but_for_the_type_of_the_weights(model, tiny_pipeline):
    encoder, original = model / "text_encoder", tiny_pipeline / "text_encoder"
    assert same_content(encoder, original)
    edit(encoder / "config.json", dtype="float16")
    assert same_content(encoder, original)
    edit(encoder / "config.json", hidden_act="gelu")
    assert not same_content(encoder, original)
    scale(model / "vae" / "diffusion_pytorch_model.safetensors", 1.5)
    assert not same_content(model / "vae", tiny_pipeline / "vae")
    (model / "tokenizer" / "added_tokens.json").write_text("{}")
    assert not same_content(model / "tokenizer", tiny_pipeline / "tokenizer")
