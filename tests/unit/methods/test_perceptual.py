"""Perceptual distances: 0 for equal images, a gradient that brings images nearer, weights from local files alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

from dpdmd.methods import perceptual
from dpdmd.methods.perceptual import DINO_LAYERS, check_perceptual_contents, load_perceptual
from dpdmd.methods.perceptual_files import IMAGENET_VGG, PERCEPTUAL_FILES

CPU = torch.device("cpu")


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def check_distance(distance: perceptual.Distance) -> None:
    """0 for the same image, above it for another, and descending it brings the image nearer."""
    x, y = images(0), images(1)
    assert distance(x, x).abs().max() < 1e-6
    found = distance(x, y)
    assert found.shape == (2,) and (found > 1e-4).all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(leaf, y).sum(), leaf)
    step = 1e-3 * found.sum() / gradient.square().sum()
    assert 0 < (found - distance(x - step * gradient, y)).sum() < 2e-3 * found.sum()
    torch.testing.assert_close(distance(x[1:], y[1:]), found[1:], rtol=1e-4, atol=1e-6)


def test_dino_distance(tiny_scorers):
    distance = load_perceptual("dino", Path(tiny_scorers["dino_path"]), CPU)
    assert distance(images(0), images(0)).tolist() == [0, 0]
    check_distance(distance)
    assert distance.layers == [1, 2, 3, 4] and len(distance.layers) == DINO_LAYERS and distance.patches == 64
    larger = torch.nn.functional.interpolate(images(0), scale_factor=2)
    assert distance(larger, larger).tolist() == [0, 0]
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())


def test_dino_distance_is_that_of_the_patches_of_normalised_images(tiny_scorers):
    """1 - cosine, mean over the layers and the patches, without the class token."""
    folder = Path(tiny_scorers["dino_path"])
    network = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    distance = load_perceptual("dino", folder, CPU)
    with torch.no_grad():
        states = [
            network(pixel_values=(images(seed) - mean) / std, output_hidden_states=True).hidden_states
            for seed in (0, 1)
        ]
        pairs = [[state[layer][:, 1:] for state in states] for layer in (1, 2, 3, 4)]
        found = distance(images(0), images(1))
    expected = torch.stack([1 - torch.cosine_similarity(*pair, dim=-1).mean(-1) for pair in pairs]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_lpips_and_dists_load_from_files_alone(name, tmp_path, monkeypatch):
    """Random weights under the publishers' names; a download would fail, and a missing weight is an error."""
    pytest.importorskip("pyiqa")
    import torchvision

    def refuse(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.vgg16(weights=None).state_dict(), tmp_path / IMAGENET_VGG)
    widths = (64, 128, 256, 512, 512)
    draw = torch.Generator().manual_seed(1)
    own = {f"lin{index}.model.1.weight": torch.rand(1, w, 1, 1, generator=draw) for index, w in enumerate(widths)}
    if name == "dists":
        own = {key: torch.rand(1, 3 + sum(widths), 1, 1, generator=draw) for key in ("alpha", "beta")}
    torch.save(own, tmp_path / PERCEPTUAL_FILES[name])
    check_perceptual_contents(name, tmp_path)
    check_distance(load_perceptual(name, tmp_path, CPU))
    own.popitem()
    torch.save(own, tmp_path / PERCEPTUAL_FILES[name])
    with pytest.raises(ValueError, match=r"^--perceptual_path .*: 1 weights are missing"):
        check_perceptual_contents(name, tmp_path)
