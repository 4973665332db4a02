"""Folders of images: how images are read, their names and prompts, and the settings beside them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpdmd.sampling.image_folder import (
    check_or_write_settings,
    file_name,
    is_whole,
    open_image,
    read_settings,
)
from dpdmd.utils.image_grid import save_image

RED = (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "suffix", "seen"),
    [
        (Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), ".png", (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), ".tiff", (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 128 * 257, np.dtype(">u2"))), ".tiff", (128, 128, 128)),
        (Image.new("L", (4, 4), 128), ".png", (128, 128, 128)),
        (Image.new("1", (4, 4), 1), ".png", (255, 255, 255)),
        (Image.new("LA", (4, 4), (100, 255)), ".png", (100, 100, 100)),
        (Image.new("LA", (4, 4), (0, 0)), ".png", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), ".png", (255, 204, 204)),
        (Image.new("RGB", (4, 4), RED).convert("P"), ".png", RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)).quantize(), ".png", (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), ".tiff", RED),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_an_image_is_read_as_viewers_show_it(tmp_path, image, suffix, seen):
    """16 bits are scaled, not clipped; transparent pixels are shown on white; palettes and CMYK keep their colours."""
    image.save(tmp_path / f"0{suffix}")
    found = open_image(tmp_path / f"0{suffix}")
    assert found.mode == "RGB" and found.getpixel((1, 1)) == seen


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path, suffix):
    """A camera's portrait is a landscape file: orientation 6 turns it by 90 degrees, once."""
    stored = Image.new("RGB", (48, 32), (0, 0, 255))
    stored.paste(RED, (0, 0, 24, 32))  # the left half becomes the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / f"0{suffix}", exif=exif)
    found = open_image(tmp_path / f"0{suffix}")
    assert found.size == (32, 48)
    assert np.abs(np.array(found.getpixel((16, 4))) - RED).max() < 8
    assert np.abs(np.array(found.getpixel((16, 44))) - (0, 0, 255)).max() < 8


@pytest.mark.parametrize("exif", [b"MM", b"Exif\0\0no exif at all"])
def test_a_broken_exif_block_is_ignored(tmp_path, exif):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    image.save(tmp_path / "0.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "0.png")), np.asarray(image))
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:2000])
    assert not is_whole(tmp_path / "1.png")


def test_a_damaged_tiff_is_unreadable(tmp_path):
    """Also if Pillow raises an unusual error: here a TypeError, for a tag of another type."""
    Image.new("RGB", (4, 4)).save(tmp_path / "0.tiff")
    content = bytearray((tmp_path / "0.tiff").read_bytes())
    content[72] = 2
    (tmp_path / "0.tiff").write_bytes(content)
    assert not is_whole(tmp_path / "0.tiff")
    with pytest.raises(ValueError, match=r"0\.tiff cannot be read as an image"):
        open_image(tmp_path / "0.tiff")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_without_a_defined_white_is_unreadable(tmp_path, mode):
    Image.new(mode, (4, 4), 1).save(tmp_path / "0.tiff")
    with pytest.raises(ValueError, match=rf"0\.tiff cannot be read as an image .*mode {mode} have no defined white"):
        open_image(tmp_path / "0.tiff")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4)), min_size=2, max_size=2, unique=True))
def test_no_two_images_share_a_name(keys):
    assert len({file_name(key) for key in keys}) == 2


def test_a_folder_keeps_its_settings(tmp_path):
    """Other settings are an error that names the difference, and do not replace the old ones."""
    check_or_write_settings(tmp_path, {"seed": 0, "steps": 4}, "--out")
    check_or_write_settings(tmp_path, {"steps": 4, "seed": 0}, "--out")
    with pytest.raises(ValueError, match=r"holds images of other settings \(seed: 0 there, 1 now\)"):
        check_or_write_settings(tmp_path, {"seed": 1, "steps": 4}, "--out")
    assert read_settings(tmp_path, "--out") == {"seed": 0, "steps": 4}


def test_images_without_settings_are_an_error(tmp_path):
    assert read_settings(tmp_path / "none", "--out") is None and read_settings(tmp_path, "--out") is None
    save_image(Image.new("RGB", (8, 8)), tmp_path / "0.png")
    with pytest.raises(ValueError, match="holds images that are not this program's"):
        read_settings(tmp_path, "--out")


def test_files_of_file_managers_are_no_foreign_images(tmp_path):
    save_image(Image.new("RGB", (8, 8)), tmp_path / "._00000_000.png")
    assert read_settings(tmp_path, "--out") is None
