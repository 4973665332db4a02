"""`--base_precision` and `--text_encoder_precision`: each family's network and text encoders, and whole runs.

A new family needs no test here, as in test_families.py.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dpdmd import doctor, export, generate, train
from dpdmd.config.options import ModelConfig
from dpdmd.config.precisions import FP8, INT8, NF4, PRECISIONS, UNQUANTIZED, Precisions
from dpdmd.methods.networks import recompute_blocks
from dpdmd.models import lora
from dpdmd.models.base import Family, TextEmbedding
from dpdmd.models.compilation import compile_blocks
from dpdmd.models.quantization import QuantizedLinear, original_weights, quantized_layers
from dpdmd.models.registry import LAYOUTS, adapters, family_class
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.tensor_files import open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM
from dpdmd.training import base_error

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large blue square and a small cyan cross"]


def needs_bitsandbytes(precision: str) -> None:
    if precision == NF4:
        pytest.importorskip("bitsandbytes", reason="pip install -e '.[memory]'")


def family_with(name: str, folder: Path, dtype: torch.dtype, *precisions: str) -> Family:
    family = family_class(name)(CPU, dtype, Precisions(*precisions))
    family.load_schedule(folder)
    return family


@pytest.fixture(scope="module", params=LAYOUTS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder(name)


@pytest.fixture(scope="module")
def plain(name: str, folder: Path) -> Family:
    return family_with(name, folder, torch.bfloat16)


@pytest.fixture(scope="module")
def unquantized(plain: Family, folder: Path) -> nn.Module:
    """Return the network in bf16. Tests change only copies."""
    return plain.load_network(folder, torch.bfloat16).requires_grad_(False)


def encode(family: Family, folder: Path) -> TextEmbedding:
    length = read_sampling_defaults(folder, family.layout.defaults).max_sequence_length
    return family.load_text_encoder(folder, length).encode(PROMPTS)


@pytest.fixture(scope="module")
def text(plain: Family, folder: Path) -> TextEmbedding:
    return encode(plain, folder)


@pytest.fixture(scope="module")
def call(plain: Family, folder: Path, text: TextEmbedding) -> Callable[[nn.Module], Tensor]:
    """Return a function that calls a network at two noise levels."""
    shape = plain.load_image_decoder(folder).latent_shape(64, 64)
    z = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    sigma = plain.load_schedule(folder).at_size(64, 64).score_sigmas(30)[[100, 600]]
    return lambda network: plain.predict(network, z, sigma, text)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_a_quantised_network_is_the_network_but_for_linear_layers_of_blocks(
    precision, name, folder, plain, unquantized, call
):
    """All other weights are equal to the bit; the estimate counts the bytes; and the original weights come back."""
    needs_bitsandbytes(precision)
    network = family_with(name, folder, torch.bfloat16, precision).load_network(folder, torch.bfloat16)
    layers, layout, theirs = quantized_layers(network), plain.layout, unquantized.state_dict()
    assert {f"{path}.weight" for path in layers} == set(layout.linear_of_blocks(folder, layout.network))
    for path, value in network.state_dict().items():
        layer, _, leaf = path.rpartition(".")
        if layer not in layers or leaf == "bias":
            assert value.dtype == theirs[path].dtype and torch.equal(value, theirs[path])
    others = {path: b for path, b in network.named_buffers() if path not in network.state_dict()}
    kept = dict(unquantized.named_buffers())
    assert all(torch.equal(value, kept[path]) for path, value in others.items())
    held = sum(value.nbytes for value in network.state_dict().values())
    assert held == layout.weight_bytes(folder, [layout.network], precision, 2).held
    with torch.no_grad():
        found, exact = call(network), call(unquantized)
        assert 1e-3 < (found - exact).norm() / exact.norm() < (0.5 if precision == NF4 else 0.2)
        with original_weights(network, open_weights(folder / layout.network, DIFFUSERS_STEM)):
            assert torch.equal(call(network), exact)
        assert torch.equal(call(network), found)


def share(network: nn.Module, name: str, folder: Path) -> lora.AdapterView:
    """Return a student on a network, with an adapter that changes the output."""
    adapter = adapters(ModelConfig(family=name, teacher_id=str(folder), lora_rank=2, lora_alpha=6.0)).student
    _, student, _ = lora.share(network, adapter, adapter, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in student.named_parameters():
            if ".lora_B." in path:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return student


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_adapters_get_the_gradients_of_a_base_with_the_dequantised_weights(
    precision, name, folder, plain, unquantized, call
):
    """To the bit, and with recomputation."""
    needs_bitsandbytes(precision)
    network = family_with(name, folder, torch.bfloat16, precision).load_network(folder, torch.bfloat16)
    dequantized = copy.deepcopy(unquantized)
    for path, layer in quantized_layers(network).items():
        dequantized.get_submodule(path).weight.data = layer.weight
    students = [share(each, name, folder) for each in (network, dequantized)]
    recompute_blocks(students[0], plain, "all")
    for student in students:
        call(student).square().sum().backward()
    ours, theirs = ({path: p.grad for path, p in student.named_parameters()} for student in students)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(ours[path], theirs[path]) for path in ours)
    assert sum(bool(gradient.abs().max() > 0) for gradient in ours.values()) > 0.9 * len(ours)


def test_quantised_blocks_compile_as_one_graph(tiny_pipeline):
    family = family_with("sd35", tiny_pipeline, torch.float32, INT8)
    generator, text = torch.Generator().manual_seed(0), encode(family, tiny_pipeline)
    z, sigma = torch.randn((2, 8, 8, 8), generator=generator), torch.tensor([0.9, 0.4])
    results = []
    for compiles in (False, True):
        network = family.load_network(tiny_pipeline, torch.float32)
        if compiles:
            compile_blocks(network, family.block_classes, "aot_eager")
        student = share(network, "sd35", tiny_pipeline)
        out = family.predict(student, z, sigma, text)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in student.parameters())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_quantised_text_encoders(precision, name, folder, text):
    """Their layers are quantised, and the embeddings stay near; the pooled vector of a CLIP of random numbers less."""
    needs_bitsandbytes(precision)
    family = family_with(name, folder, torch.bfloat16, UNQUANTIZED, precision)
    length = read_sampling_defaults(folder, family.layout.defaults).max_sequence_length
    encoder = family.load_text_encoder(folder, length)
    networks = [part for key, part in encoder.pipe.components.items() if key.startswith("text_encoder") and part]
    for network in networks:
        layers = [path for path, layer in network.named_modules() if isinstance(layer, QuantizedLinear)]
        assert layers and not any("embed" in path for path in layers)
        assert {value.dtype for value in network.parameters()} == {torch.bfloat16}
    found = encoder.encode(PROMPTS)
    error = (found.context - text.context).norm() / text.context.norm()
    assert 1e-3 < error < (0.4 if precision == NF4 else 0.1)


# Runs


@pytest.fixture
def command(short_run: list[str], tmp_path: Path) -> list[str]:
    rates = ["--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    flags = ["--lora_rank", "2", "--base_precision", INT8, "--bf16", "--gradient_checkpointing"]
    return [*short_run, *rates, *flags, "--text_encoder_precision", FP8, "--vis_every", "0"]


def test_a_run_resumes_to_the_same_bytes_and_in_one_precision_alone(command, tmp_path, capsys, monkeypatch):
    """A checkpoint holds adapters and the identity of their base; a large error of the base is a warning."""
    cache = ["--cache_text_embeddings", str(tmp_path / "cache")]
    whole, parts = ([*command, *cache, "--run_dir", str(tmp_path / each)] for each in ("whole", "parts"))
    assert train.main([*whole, "--max_steps", "5"]) == 0
    assert train.main([*parts, "--max_steps", "3"]) == 0
    resumed = [*parts, "--max_steps", "5", "--resume_from_checkpoint", "latest"]
    capsys.readouterr()
    assert train.main([*resumed, "--base_precision", FP8]) == 2
    assert "of another configuration (base_precision" in capsys.readouterr().err
    monkeypatch.setattr(base_error, "LIMIT", 1e-6)
    assert train.main(resumed) == 0
    last = [tmp_path / each / "ckpts" / "step_000005" for each in ("whole", "parts")]
    files = sorted(path.relative_to(last[0]) for path in last[0].rglob("*.safetensors"))
    assert len(files) >= 5
    for file in files:
        ours, theirs = load_file(last[0] / file), load_file(last[1] / file)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
        assert all("lora" in key for key in ours) or "optimizer" in file.name
    manifest = json.loads((last[0] / "manifest.json").read_text())
    assert manifest["config"]["model"]["base_precision"] == INT8 and manifest["progress"]["models"]["transformer"]
    logs = [(tmp_path / each / "log" / "log.txt").read_text() for each in ("whole", "parts")]
    said = "--base_precision int8: the guided prediction is "
    assert said in logs[0] and "learns from a changed teacher" not in logs[0]
    assert "more than 0%: the student learns from a changed teacher; bf16 is exact" in logs[1]
    # Embeddings in another precision have files of their own.
    before = len(list((tmp_path / "cache").iterdir()))
    other = [*command, *cache, "--text_encoder_precision", UNQUANTIZED, "--run_dir", str(tmp_path / "other")]
    assert train.main([*other, "--max_steps", "1"]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2 * before


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32))


def test_a_student_is_sampled_on_both_bases_and_merged_into_the_unquantised_one(command, tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "images"
    assert train.main([*command, "--run_dir", run, "--max_steps", "3"]) == 0
    sample = ["--model", run, "--prompt", "a red circle", "a cross", "--num_images", "2", "--no-bf16"]
    both = [*sample, "--base_precision", INT8, "--beside_bf16"]
    assert generate.main([*both, "--out", str(out)]) == 0
    assert generate.main([*sample, "--out", str(tmp_path / "plain")]) == 0
    for name in ("00000_000", "00001_001"):
        quantized, beside = pixels(out / f"{name}.png"), pixels(out / f"{name}_bf16.png")
        assert torch.equal(beside, pixels(tmp_path / "plain" / f"{name}.png"))
        assert 0 < (quantized - beside).abs().max() < 60
    grids = [pixels(folder / "grid.png").shape for folder in (out, tmp_path / "plain")]
    assert grids[0][0] > 1.9 * grids[1][0] and grids[0][1] == grids[1][1]
    assert generate.main([*sample, "--base_precision", INT8, "--out", str(out)]) == 2
    assert "4 images of an earlier call would stay" in capsys.readouterr().err

    merged = tmp_path / "merged"
    assert export.main(["--model", run, "--out", str(merged)]) == 0
    card = (merged / "README.md").read_text()
    assert "**Trained on a base in int8.**" in card and "and it is merged into the base model as it is stored" in card
    assert "| linear layers of the frozen base | int8 |" in card
    beside = (tmp_path / "run" / "ckpts" / "latest" / "lora" / "README.md").read_text()
    assert "and the code above puts it beside the base model as it is stored" in beside
    assert generate.main([*sample[2:], "--model", str(merged), "--out", str(tmp_path / "of_merged")]) == 0
    image, same = (pixels(tmp_path / each / "00000_000.png") for each in ("of_merged", "plain"))
    assert (image - same).abs().max() <= 1


def test_the_doctor_shows_the_student_on_both_bases(command, tmp_path, capsys):
    assert doctor.main([*command, "--out", str(tmp_path / "doctor")]) == 0
    out = capsys.readouterr().out
    assert "| quantised base | ok | --base_precision int8: the guided prediction is " in out
