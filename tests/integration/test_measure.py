"""`python -m dpdmd.shapes.measure`: flags are checked before a model is loaded, and the metrics are written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.shapes import measure
from dpdmd.shapes.categories import category

CAPTIONS = "a red circle\na red circle\na circle left of a square\n"


@pytest.fixture
def flags(tmp_path, tiny_pipeline) -> list[str]:
    """Flags of a short measurement with random weights."""
    (tmp_path / "captions.txt").write_text(CAPTIONS)
    flags = ["--prompt_txt", str(tmp_path / "captions.txt"), "--num_seeds", "2", "--steps", "1"]
    return ["--model", str(tiny_pipeline), *flags]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--num_seeds", "0"], "--num_seeds 0: must be 1 to 100000"),
        (["--steps", "0"], "--steps 0: must be 1 to 1000"),
        (["--seed", "-1"], "--seed -1: must be 0 to 4294967295"),
        (["--guidance_scale", "nan"], "--guidance_scale nan: must be a finite number, at least 0"),
        (["--prompt_txt", "no.txt"], "--prompt_txt no.txt: cannot be read"),
        (["--model", "nowhere"], "--model nowhere: "),
        (
            ["--out", "{tmp}/captions.txt/x.json"],
            "--out {tmp}/captions.txt: {tmp}/captions.txt is a file; give a folder",
        ),
        (["--out", "{tmp}"], "--out {tmp}: is a folder; give a file"),
        (["--out", "{tmp}/captions.txt"], "--out {tmp}/captions.txt: exists and is no result of this program; give"),
    ],
)
def test_wrong_input_is_reported_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, flags, wrong, says):
    monkeypatch.setattr(measure, "load_sampler", lambda *_, **__: pytest.fail("a model was loaded"))
    assert measure.main([*flags, *(word.format(tmp=tmp_path) for word in wrong)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"dpdmd.shapes.measure: error: {says.format(tmp=tmp_path)}")
    assert message.count("\n") == 1


def test_a_prompt_that_is_not_a_caption_is_reported_with_its_file(tmp_path, capsys, flags):
    (tmp_path / "captions.txt").write_text("a red circle\na photo of a cat\n")
    assert measure.main(flags) == 2
    assert f"--prompt_txt {tmp_path / 'captions.txt'}: 'a photo of a cat' is not a caption" in capsys.readouterr().err


def test_the_metrics_have_every_caption_once_and_by_category(tmp_path, capsys, tiny_pipeline, flags):
    """Prompts of one object and of two in one file are measured by their own oracles."""
    out = tmp_path / "new" / "figures.json"
    for _ in range(2):  # an earlier result is replaced
        assert measure.main([*flags, "--out", str(out)]) == 0
    (metrics,) = json.loads(out.read_text()).values()
    assert list(metrics["prompts"]) == ["a red circle", "a circle left of a square"]
    assert list(metrics["categories"]) == ["colour_shape", "position"]
    assert metrics["prompts"]["a circle left of a square"]["spread"] is None
    assert "2 prompts x 2 seeds, seed 0" in capsys.readouterr().out


def test_images_that_are_not_finite_are_an_error(tmp_path, capsys, tiny_pipeline, flags):
    """Rounded to 8 bits they would be black, and the oracle would recognise nothing."""
    broken = tmp_path / "broken"
    for path in tiny_pipeline.rglob("*"):
        if path.is_file():
            (broken / path.relative_to(tiny_pipeline)).parent.mkdir(parents=True, exist_ok=True)
            (broken / path.relative_to(tiny_pipeline)).write_bytes(path.read_bytes())
    weights: Path = next((broken / "transformer").glob("*.safetensors"))
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    assert measure.main([*flags, "--model", str(broken)]) == 2
    assert f"--model {broken}: its images are not finite" in capsys.readouterr().err


def test_a_model_of_another_size_is_reported_before_it_is_sampled(tmp_path, monkeypatch, capsys, tiny_pipeline, flags):
    monkeypatch.setattr(measure, "load_sampler", lambda *_, **__: pytest.fail("a model was loaded"))
    shutil.copytree(tiny_pipeline, tmp_path / "large")
    SamplingDefaults(steps=4, height=128, width=64).write(tmp_path / "large")
    assert measure.main([*flags, "--model", str(tmp_path / "large")]) == 2
    assert f"--model {tmp_path / 'large'}: makes images of 128 x 64 pixels, and the oracle" in capsys.readouterr().err


def test_a_model_that_fails_leaves_the_metrics_of_the_others(tmp_path, monkeypatch, capsys, tiny_pipeline, flags):
    other, load = Path(shutil.copytree(tiny_pipeline, tmp_path / "other")), measure.load_sampler

    def full(model, *arguments, **more):
        if model == other:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")
        return load(model, *arguments, **more)

    monkeypatch.setattr(measure, "load_sampler", full)
    out = ["--out", str(tmp_path / "figures.json")]
    assert measure.main([*flags, "--model", str(tiny_pipeline), str(other), *out]) == 1
    assert f"stopped: --model {other}: out of memory; is the device in use elsewhere?" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "figures.json").read_text())) == [str(tiny_pipeline)]


@pytest.mark.parametrize(
    ("captions", "missing"),
    [
        (["a red circle", "a circle left of a square"], set()),
        (["a circle left of a square"], {"spread"}),
        (["a small red circle on a grey background"], {"coverage", "entropy"}),
    ],
)
def test_the_metrics_of_captions_are_known_before_a_measurement(captions, missing):
    names = measure.metric_names(captions)
    assert {"accuracy", "unrecognised", "coverage", "entropy", "spread"} - set(names) == missing
    assert [name for name in names if "/" in name] == [f"accuracy/{category(each)}" for each in captions]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, flags):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measure, "write_json", full)
    assert measure.main([*flags, "--out", str(tmp_path / "figures.json")]) == 1
    assert capsys.readouterr().err.endswith("figures.json: No space left on device\n")
