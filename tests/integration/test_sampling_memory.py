"""What sampling and an export hold in memory: encoders go before the network comes, and the estimate is printed."""

import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bad_input import program
from safetensors.torch import load_file, save_file

from dpdmd import export, generate
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling.find_model import Model, find_model
from dpdmd.sampling.load_model import plan_sampler, uses_bf16
from dpdmd.sampling.memory_estimate import sampling_items

WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")
CPU = torch.device("cpu")


@pytest.fixture
def in_16_bits(tiny_pipeline, tmp_path) -> Path:
    """Return a copy of the teacher whose network is stored in bf16."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "in_16_bits"))
    save_file({name: value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


@pytest.fixture
def no_model_loads_after(monkeypatch) -> Callable[[], None]:
    """Return a function after whose call no part of a pipeline loads."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    def forbid() -> None:
        for name in ("load_network", "load_text_encoder", "load_image_decoder"):
            monkeypatch.setattr(SD35, name, refuse)

    return forbid


def generating(tiny_pipeline: Path, out: Path) -> int:
    given = ["--model", str(tiny_pipeline), "--prompt", "a cross", "a circle", "--num_images", "1", "--steps", "1"]
    return generate.main([*given, "--out", str(out)])


@pytest.mark.parametrize("name", ["dpdmd.generate", "test_diversity.py"])
def test_text_encoders_are_gone_before_the_network_loads(name, tiny_pipeline, diversity, tmp_path, monkeypatch):
    encoders, left = [], []
    load_encoder, load_network = SD35.load_text_encoder, SD35.load_network

    def remember(*args, **options):
        encoder = load_encoder(*args, **options)
        encoders.append(weakref.ref(encoder))
        return encoder

    def look(*args):
        left.append([encoder() for encoder in encoders])
        return load_network(*args)

    monkeypatch.setattr(SD35, "load_text_encoder", remember)
    monkeypatch.setattr(SD35, "load_network", look)
    if name == "dpdmd.generate":
        assert generating(tiny_pipeline, tmp_path / "images") == 0
    else:
        assert program(name)([*diversity, "--num_samples", "2", "--steps", "1"]) == 0
    assert left == [[None]]


def test_images_that_are_all_there_load_nothing(diversity, no_model_loads_after):
    command = [*diversity, "--num_samples", "2", "--steps", "1"]
    assert program("test_diversity.py")(command) == 0
    no_model_loads_after()
    assert program("test_diversity.py")(command) == 0


def test_the_precision_is_the_flags_else_the_trainings_else_that_of_the_weights(tiny_pipeline, in_16_bits, tmp_path):
    assert not uses_bf16(find_model(tiny_pipeline, None), None)
    assert uses_bf16(find_model(in_16_bits, None), None)
    network = tmp_path / "student.safetensors"
    shutil.copy(tiny_pipeline / WEIGHTS, network)
    assert not uses_bf16(find_model(network, in_16_bits), None)
    for trained in (True, False):
        model = Model(in_16_bits, SamplingDefaults(bf16=trained))
        assert uses_bf16(model, None) is trained
        assert uses_bf16(model, not trained) is not trained


@pytest.mark.parametrize(("flags", "kind"), [((), "bf16"), (("--no-bf16",), "fp32")])
def test_images_are_made_in_the_precision_of_the_weights(in_16_bits, tmp_path, monkeypatch, flags, kind):
    seen = []
    load_network = SD35.load_network
    monkeypatch.setattr(SD35, "load_network", lambda self, *args: seen.append(args[1]) or load_network(self, *args))
    given = ["--model", str(in_16_bits), "--prompt", "a cross", "--num_images", "1", "--steps", "1"]
    assert generate.main([*given, *flags, "--out", str(tmp_path / "images")]) == 0
    assert seen == [torch.bfloat16 if kind == "bf16" else torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_of_the_weights_is_what_loads(tiny_pipeline, dtype):
    plan = plan_sampler(find_model(tiny_pipeline, None), CPU, dtype=dtype)
    found = {item.name: item.bytes for item in sampling_items(plan, 1, "--batch_size")}
    sampler, encoder = plan.load()

    encoders = (encoder.pipe.text_encoder, encoder.pipe.text_encoder_2, encoder.pipe.text_encoder_3)
    for name, networks in (("network", [sampler.network]), ("text encoders", encoders)):
        held = {value.data_ptr(): value.nbytes for network in networks for value in network.state_dict().values()}
        assert found[name] == pytest.approx(sum(held.values()), rel=0.01), name


def test_each_program_prints_its_estimate_before_it_loads(
    tiny_pipeline, tmp_path, capsys, no_model_loads_after, monkeypatch
):
    no_model_loads_after()
    with pytest.raises(AssertionError, match="a model was loaded"):
        generating(tiny_pipeline, tmp_path / "images")
    assert re.match(r"memory: estimated [\d.]+ GB, most in: ", capsys.readouterr().err)
    monkeypatch.setattr(SD35, "export", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(pytest.fail.Exception, match="weights were read"):
        export.main(["--model", str(tiny_pipeline), "--out", str(tmp_path / "whole")])
    assert re.match(r"memory: estimated [\d.]+ GB, most in: export; ", capsys.readouterr().err)
    assert not (tmp_path / "whole").exists()
