"""8-bit images and labelled grids."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from dpdmd.utils import image_grid
from dpdmd.utils.image_grid import labelled_grid, that_fit, to_float, to_pil


def test_eight_bits_round_trip():
    values = torch.linspace(0, 1, 3 * 4 * 4).reshape(1, 3, 4, 4)
    assert np.abs(to_float(to_pil(values)) - values.numpy()).max() <= 0.5 / 255 + 1e-6


def test_grid_shows_every_image_in_its_place():
    colours = [(index * 20, 0, 0) for index in range(5)]
    sheet = labelled_grid([[Image.new("RGB", (64, 64), c) for c in colours]], ["five"], columns=3)
    found = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 8) for y in range(0, sheet.height, 8)}
    assert set(colours) <= found
    with pytest.raises(ValueError, match="at least one image"):
        labelled_grid([[]], ["none"])


def test_a_grid_of_too_many_pixels_has_the_first_images(monkeypatch):
    """A large image makes every place as large."""
    monkeypatch.setattr(image_grid, "GRID_PIXELS", 4 * 8 * 8)
    small, large = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))
    assert that_fit(iter([small] * 9)) == [small] * 4
    assert that_fit([small, large, small]) == [small, large]
    assert [image.size for image in that_fit([Image.new("RGB", (99, 99)), small])] == [(99, 99)]


def test_images_of_different_sizes_do_not_cover_each_other():
    sizes = {(200, 0, 0): (64, 32), (0, 200, 0): (32, 96), (0, 0, 200): (80, 64)}
    images = [Image.new("RGB", size, colour) for colour, size in sizes.items()]
    sheet = labelled_grid([images[:2], images[2:]], ["one", "two"])
    counts = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    assert {colour: counts[colour] for colour in sizes} == {colour: w * h for colour, (w, h) in sizes.items()}


@pytest.mark.parametrize("text", ["a" * 2_600_000, "i" * 300, "one\ntwo " * 100, "猫" * 5000, "\u0301" * 5000])
def test_a_caption_takes_one_line_however_long(text):
    """Pillow rejects a million letters, and shortening by one letter at a time took half a minute."""
    start = time.process_time()
    sheet = labelled_grid([[Image.new("RGB", (64, 64))] * 3], [text], title=text)
    assert time.process_time() - start < 2
    short = labelled_grid([[Image.new("RGB", (64, 64))] * 3], ["a"], title="a")
    assert sheet.size == short.size
    assert sheet.getpixel((8, 50)) == (0, 0, 0) == short.getpixel((8, 50))  # no second line over the images
