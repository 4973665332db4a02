"""`dpdmd.generate` and the sampler: images depend on (seed, prompt, sample) alone, and agree with diffusers."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from dpdmd import export, generate
from dpdmd.models.image_decoder import OffloadedDecoder
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling import generation
from dpdmd.sampling.load_model import load_sampler
from dpdmd.utils.rng import normal_per_sample


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))}


def test_images_do_not_depend_on_the_batch(tiny_pipeline, tmp_path):
    common = [
        "--model",
        str(tiny_pipeline),
        "--prompt",
        "a red circle",
        "--prompt",
        "a cross",
        "--num_images",
        "3",
        "--steps",
        "2",
    ]
    assert generate.main([*common, "--out", str(tmp_path / "one"), "--batch_size", "1"]) == 0
    assert generate.main([*common, "--out", str(tmp_path / "four"), "--batch_size", "4"]) == 0
    one, four = images(tmp_path / "one"), images(tmp_path / "four")
    assert list(one) == [f"{prompt:05d}_{sample:03d}.png" for prompt in range(2) for sample in range(3)] == list(four)
    # One grey level: fp32 products are summed in another order, and a value may lie on a rounding edge.
    assert max(np.abs(one[name] - four[name]).max() for name in one) <= 1
    assert np.abs(one["00000_000.png"] - one["00000_001.png"]).max() > 5
    assert (tmp_path / "one" / "grid.png").is_file()


def test_another_seed_gives_other_images(tiny_pipeline, tmp_path):
    """The second call replaces the images of the first, which are this program's own."""
    common = ["--model", str(tiny_pipeline), "--prompt", "a red circle", "--num_images", "1", "--steps", "2"]
    found = []
    for seed in ("0", "1"):
        assert generate.main([*common, "--out", str(tmp_path), "--seed", seed]) == 0
        found.append(images(tmp_path)["00000_000.png"])
    assert np.abs(found[0] - found[1]).max() > 5


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_sampler_agrees_with_diffusers(tiny_pipeline, guidance):
    """The same noise gives the same latents: grid, guidance, empty prompt and Euler step agree."""
    sampler, encoder = load_sampler(tiny_pipeline, torch.device("cpu"), steps=3, guidance_scale=guidance)
    eps = normal_per_sample((8, 8, 8), 0, "picture", 0, [0, 1])
    ours = sampler.latents(encoder.encode(["a red circle", "a cross"]), eps)
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    call = {"latents": eps, "num_inference_steps": 3, "guidance_scale": guidance, "max_sequence_length": 10}
    theirs = pipe(["a red circle", "a cross"], output_type="latent", **call).images
    assert (ours - theirs).abs().max() < 1e-4 and theirs.std() > 0.1
    decoded = pipe(["a red circle", "a cross"], output_type="pt", **call).images
    assert (sampler.decoder.decode(ours) - decoded).abs().max() < 1e-4


@pytest.fixture
def not_finite(tiny_pipeline, tmp_path) -> Path:
    """A pipeline with one NaN weight, as after a broken training."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "not_finite"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["proj_out.bias"][0] = float("nan")
    save_file(state, weights)
    return folder


@pytest.mark.parametrize("layout", ["flat", "geneval"])
def test_images_that_are_not_finite_are_an_error(not_finite, for_geneval, tmp_path, capsys, layout):
    """Otherwise they would be written as black images, with status 0."""
    given = ["--model", str(not_finite), "--out", str(tmp_path / "out"), "--steps", "1", "--num_images", "1"]
    wanted = ["--prompt", "a cross"] if layout == "flat" else ["--geneval", str(tmp_path / "metadata.jsonl")]
    assert generate.main([*given, *wanted]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"dpdmd.generate: error: --model {not_finite}: its images are not finite")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_base_model_that_is_not_used_is_a_warning(tiny_pipeline, tmp_path, caplog):
    """A complete pipeline needs no base model; the user may expect that it is used."""
    given = ["--model", str(tiny_pipeline), "--base_model", "nowhere"]
    made = ["--out", str(tmp_path / "out"), "--steps", "1", "--num_images", "1", "--prompt", "a cross"]
    assert generate.main([*given, *made]) == 0
    assert "--base_model nowhere: not used, since --model" in caplog.text
    caplog.clear()
    assert export.main([*given, "--out", str(tmp_path / "whole")]) == 0
    assert "--base_model nowhere: not used, since --model" in caplog.text


def test_a_grid_has_a_maximal_size(tiny_pipeline, tmp_path, monkeypatch, caplog):
    """All images are written as files. The grid shows the first, in their places, and a warning says how many."""
    given = ["--model", str(tiny_pipeline), "--steps", "1", "--num_images", "2", "--prompt", "a cross", "a triangle"]
    assert generate.main([*given, "--out", str(tmp_path / "all")]) == 0 and not caplog.text
    monkeypatch.setattr(generation, "GRID_PIXELS", 3 * 64 * 64)
    assert generate.main([*given, "--out", str(tmp_path / "some")]) == 0
    assert "grid.png shows the first 3 of 4 images" in caplog.text
    one, two = images(tmp_path / "all"), images(tmp_path / "some")
    assert len(one) == len(two) == 4 and all((one[name] == two[name]).all() for name in one)
    whole, part = (np.asarray(Image.open(tmp_path / name / "grid.png")) for name in ("all", "some"))
    assert whole.shape == part.shape
    assert (whole[:, :68] == part[:, :68]).all() and (part[-68:, -68:] == 255).all()


METADATA = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a red circle"},
    {"tag": "colors", "include": [{"class": "cross", "count": 1, "color": "cyan"}], "prompt": "a cyan cross"},
]


@pytest.fixture
def for_geneval(tiny_pipeline, tmp_path) -> list[str]:
    """A command line that fills tmp_path/out for GenEval."""
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in METADATA))
    flags = ["--geneval", str(tmp_path / "metadata.jsonl"), "--out", str(tmp_path / "out")]
    return ["--model", str(tiny_pipeline), *flags, "--steps", "2", "--batch_size", "2"]


def test_images_have_genevals_layout(for_geneval, tiny_pipeline, tmp_path):
    """Numbered folders have their line and four samples, the same images as without --geneval."""
    assert generate.main(for_geneval) == 0
    out = tmp_path / "out"
    samples = [f"samples/{index:04d}.png" for index in range(4)]
    for index, entry in enumerate(METADATA):
        folder = out / f"{index:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == entry
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {"metadata.jsonl", "grid.png", *samples}
    flat = ["--model", str(tiny_pipeline), "--out", str(tmp_path / "flat"), "--steps", "2", "--batch_size", "2"]
    assert generate.main([*flat, "--num_images", "4", "--prompt", *(entry["prompt"] for entry in METADATA)]) == 0
    for index in range(8):
        ours = (out / f"{index // 4:05d}" / samples[index % 4]).read_bytes()
        assert ours == (tmp_path / "flat" / f"{index // 4:05d}_{index % 4:03d}.png").read_bytes()


def test_a_killed_call_with_geneval_continues(for_geneval, tmp_path, capsys):
    """Complete images are kept, a truncated one is sampled again, and other settings are an error."""
    assert generate.main(for_geneval) == 0
    paths = sorted((tmp_path / "out").rglob("samples/*.png"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    paths[4].write_bytes(before[paths[4]][0][:50])
    paths[7].unlink()
    assert generate.main(for_geneval) == 0
    assert {path: path.read_bytes() for path in paths} == {path: content for path, (content, _) in before.items()}
    assert [path.stat().st_mtime_ns == before[path][1] for path in paths] == [True] * 4 + [False] * 4
    assert generate.main([*for_geneval, "--seed", "1"]) == 2
    assert "holds images of other settings (seed: 0 there, 1 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1 is no JSON"),
        ('{"tag": "colors", "prompt": "a cat"}\n\n{"tag": "colors", "prompt": "a dog"}', "line 2 is no JSON"),
        ('{"tag": "colors"}', "line 1 has no 'prompt'"),
        ('{"prompt": "a cat"}', "line 1 has no 'tag'"),
        ("[1]", "line 1 has no 'tag'"),
        ('{"tag": "colors", "prompt": " "}', "line 1 has no 'prompt'"),
        (None, "cannot be read"),
    ],
)
def test_bad_metadata_gets_one_line(for_geneval, tmp_path, capsys, content, says):
    (tmp_path / "metadata.jsonl").unlink()
    if content is not None:
        (tmp_path / "metadata.jsonl").write_text(content)
    assert generate.main(for_geneval) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and "--geneval" in line and not (tmp_path / "out").exists()


def test_geneval_rejects_a_folder_with_other_files(for_geneval, tmp_path, capsys):
    (tmp_path / "out" / "00000").mkdir(parents=True)
    assert generate.main(for_geneval) == 2
    assert "holds files that are not this program's" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_settings_beside_images_are_named(for_geneval, tmp_path, capsys, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pictures.json").write_bytes(content)
    assert generate.main(for_geneval) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "out" / "pictures.json") in line and line.endswith("give another folder")
    assert (tmp_path / "out" / "pictures.json").read_bytes() == content


def test_an_offloaded_decoder_makes_the_same_images_one_at_a_time(tiny_pipeline, monkeypatch):
    """`--offload_vae`: the network is on the device only during a call, and images do not change."""
    decoder = SD35(torch.device("cpu"), torch.float32).load_image_decoder(tiny_pipeline)
    latents = torch.randn(3, *decoder.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    together = decoder.decode(latents)
    moves, batches, healthy = [], [], decoder.decode_with_gradient
    monkeypatch.setattr(decoder.vae, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr(
        decoder, "decode_with_gradient", lambda latent: (batches.append(len(latent)), healthy(latent))[1]
    )
    resting = OffloadedDecoder(decoder, torch.device("cuda"))
    assert moves == ["cpu"] and resting.latent_shape(64, 64) == decoder.latent_shape(64, 64)
    torch.testing.assert_close(resting.decode(latents), together, rtol=0, atol=1e-5)
    assert moves == ["cpu", "cuda", "cpu"] and batches == [1, 1, 1]


def test_the_command_at_the_end_of_a_run_generates_images(finished, tmp_path):
    """The last lines of the log name the student, the report, and a command that can be pasted into a shell."""
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    closing = (run / "log" / "log.txt").read_text().partition("INFO done:\n")[2].replace(str(finished), str(run))
    said = dict(line.split(maxsplit=1) for line in closing.splitlines())
    assert (Path(said["student"]) / "model_index.json").is_file() and Path(said["report"]).is_file()
    python, *words = shlex.split(said["generate"])
    assert python == "python" and words[:2] == ["-m", "dpdmd.generate"]
    assert generate.main(words[2:]) == 0
    assert len(list((run / "images").glob("00000_*.png"))) == 9
