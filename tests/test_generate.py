"""`dpdmd.generate` and the sampler: pictures depend on (seed, prompt, sample) alone, and agree with diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from dpdmd import generate
from dpdmd.families.base import RestingDecoder
from dpdmd.families.sd35 import SD35
from dpdmd.grids import labelled_grid, to_float, to_pil
from dpdmd.rng import normal_per_sample
from dpdmd.sampling import load_sampler


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))}


def test_pictures_do_not_depend_on_the_batch(tiny_pipeline, tmp_path):
    common = ["--model", str(tiny_pipeline), "--prompt", "a red circle", "a cross", "--num_images", "3", "--steps", "2"]
    assert generate.main([*common, "--out", str(tmp_path / "one"), "--batch_size", "1"]) == 0
    assert generate.main([*common, "--out", str(tmp_path / "four"), "--batch_size", "4"]) == 0
    one, four = pictures(tmp_path / "one"), pictures(tmp_path / "four")
    assert list(one) == [f"{prompt:05d}_{sample:03d}.png" for prompt in range(2) for sample in range(3)] == list(four)
    # One grey level: fp32 products are summed in another order, and a value may lie on a rounding edge.
    assert max(np.abs(one[name] - four[name]).max() for name in one) <= 1
    assert np.abs(one["00000_000.png"] - one["00000_001.png"]).max() > 5
    assert (tmp_path / "one" / "grid.png").is_file()


def test_another_seed_gives_other_pictures(tiny_pipeline, tmp_path):
    common = ["--model", str(tiny_pipeline), "--prompt", "a red circle", "--num_images", "1", "--steps", "2"]
    for seed in ("0", "1"):
        assert generate.main([*common, "--out", str(tmp_path / seed), "--seed", seed]) == 0
    first, second = (pictures(tmp_path / seed)["00000_000.png"] for seed in ("0", "1"))
    assert np.abs(first - second).max() > 5


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_sampler_agrees_with_diffusers(tiny_pipeline, guidance):
    """The same latents from the same noise: grid, guidance, empty prompt and Euler step are diffusers' own."""
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


def test_pictures_survive_the_way_to_eight_bits_and_back():
    values = torch.linspace(0, 1, 3 * 4 * 4).reshape(1, 3, 4, 4)
    assert np.abs(to_float(to_pil(values)) - values.numpy()).max() <= 0.5 / 255 + 1e-6


def test_grid_shows_every_picture_in_its_place():
    colours = [(index * 20, 0, 0) for index in range(5)]
    sheet = labelled_grid([[Image.new("RGB", (64, 64), c) for c in colours]], ["five"], columns=3)
    found = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 8) for y in range(0, sheet.height, 8)}
    assert set(colours) <= found
    with pytest.raises(ValueError, match="at least one picture"):
        labelled_grid([[]], ["none"])


def test_a_resting_decoder_makes_the_same_pictures_one_at_a_time(tiny_pipeline, monkeypatch):
    """`--offload_vae`: a picture does not change; the network comes to the device for a call and leaves it after."""
    decoder = SD35(torch.device("cpu"), torch.float32).load_image_decoder(tiny_pipeline)
    latents = torch.randn(3, *decoder.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    together = decoder.decode(latents)
    moves, batches, healthy = [], [], decoder.decode
    monkeypatch.setattr(decoder.vae, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr(decoder, "decode", lambda latent: (batches.append(len(latent)), healthy(latent))[1])
    resting = RestingDecoder(decoder, torch.device("cuda"))
    assert moves == ["cpu"] and resting.latent_shape(64, 64) == decoder.latent_shape(64, 64)
    torch.testing.assert_close(resting.decode(latents), together, rtol=0, atol=1e-5)
    assert moves == ["cpu", "cuda", "cpu"] and batches == [1, 1, 1]
