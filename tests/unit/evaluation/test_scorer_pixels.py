"""Each scorer sees the pixels that its reference sees. The references' transforms are written out here with Pillow."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor
from transformers import AutoImageProcessor, Qwen2VLImageProcessor

from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample
from dpdmd.evaluation.scorers.imagereward import CLIP_MEAN, CLIP_STD, image_transform
from dpdmd.evaluation.scorers.maniqa import CROP, Maniqa
from dpdmd.evaluation.scorers.visualquality import QUESTION, VisualQualityR1, network_size
from dpdmd.sampling.image_folder import open_image
from dpdmd.utils.image_grid import save_image

SIZES = [
    *((512, 512), (225, 225), (454, 335), (335, 454), (832, 1216), (1216, 832), (301, 227), (640, 300)),
    *((224, 225), (224, 226), (227, 224), (64, 64), (3, 500), (500, 3), (1, 1)),
]
QWEN_SIZES = {
    # As qwen_vl_utils 0.0.14 resizes.
    (512, 512): (504, 504),
    (1024, 1024): (1036, 1036),
    (454, 335): (448, 336),
    (832, 1216): (840, 1204),
    (3, 500): (28, 504),
    (500, 14): (504, 28),
    (1, 1): (56, 56),
    (20, 20): (56, 56),
    (28, 56): (56, 84),
    (41, 42): (56, 84),
    (6000, 2500): (5544, 2296),
}
MODES = ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1"]


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return an image in which each shift by a pixel shows; a palette has a transparent colour."""
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(array)
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 3
        return image
    return image if mode == "RGBA" else image.convert(mode)


def half_to_even(margin: int) -> int:
    """Return the corner of torchvision's and open_clip's centre crop."""
    return round(margin / 2)


def half_down(margin: int) -> int:
    """Return the corner of the centre crop of transformers."""
    return margin // 2


def reference(image: Image.Image, size: int, corner: Callable[[int], int], mean=CLIP_MEAN, std=CLIP_STD) -> Tensor:
    """Resize the short side, crop the centre, convert to RGB and normalise, [3, size, size]."""
    short, long = min(image.size), max(image.size)
    lengths = [size if side == short else int(size * long / short) for side in image.size]
    resized = image if tuple(lengths) == image.size else image.resize(lengths, Image.BICUBIC)
    left, top = (corner(length - size) for length in lengths)
    array = np.array(resized.crop((left, top, left + size, top + size)).convert("RGB"))
    pixels = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_imagereward_sees_the_packages_pixels(mode):
    """To the bit, in any mode: the package converts to RGB after the resize."""
    transform = image_transform(224)
    for size in SIZES:
        image = noise(size, mode)
        assert torch.equal(transform(image), reference(image, 224, half_to_even)), size


def test_open_clip_sees_its_own_pixels():
    transform = image_transform_v2(PreprocessCfg(size=224, mean=CLIP_MEAN, std=CLIP_STD), is_train=False)
    for size in SIZES:
        assert torch.equal(transform(noise(size)), reference(noise(size), 224, half_to_even)), size


@pytest.mark.parametrize("name", ["div_clip", "clip_score", "pickscore", "div_dino"])
def test_transformers_scorers_see_pillows_pixels(name, tiny_scorers):
    """To a float's last bits. The default processor of transformers 5 resizes with torchvision: near, not equal."""
    paths = check_scorer_paths(tiny_scorers, (name,))[name]
    scorer = build_scorer(name, paths, torch.device("cpu"))
    transform = scorer.pixels if name == "div_dino" else scorer.clip.pixels
    default = AutoImageProcessor.from_pretrained(next(iter(paths.values())))
    mean, std = default.image_mean, default.image_std
    for size in SIZES:
        found = transform([noise(size)])[0]
        torch.testing.assert_close(found, reference(noise(size), 64, half_down, mean, std), rtol=0, atol=1e-6)
        levels = (default(noise(size), return_tensors="pt")["pixel_values"][0] - found).abs() * 255 * max(std)
        assert levels.mean() < 0.5, size


def test_maniqa_sees_unchanged_windows_of_the_image():
    """The values of torchvision's `to_tensor`, as pyiqa reads an image; a smaller image is enlarged first."""
    scorer = Maniqa.__new__(Maniqa)  # without a network
    scorer.num_crops, scorer.seed = 20, 0
    down, across = np.mgrid[:300, :260]
    image = Image.fromarray(
        np.stack([down % 256, across % 256, down // 256 + 2 * (across // 256)], -1).astype(np.uint8)
    )
    whole, corners = to_tensor(image), set()
    for crop in scorer._crops(Sample(image, "", (0, 0))):
        red, green, blue = (crop[:, 0, 0] * 255).round().int().tolist()
        top, left = red + 256 * (blue % 2), green + 256 * (blue // 2)
        assert torch.equal(crop[:, :CROP, :CROP], whole[:, top : top + CROP, left : left + CROP])
        corners.add((top, left))
    assert len(corners) == 20
    for size in [(3, 500), (1, 1), (224, 223)]:
        assert scorer._crops(Sample(noise(size), "", (0, 0))).shape == (20, 3, CROP + 1, CROP + 1)


def test_visualquality_resizes_to_the_sizes_of_the_authors_loader():
    assert {size: network_size(size, 28) for size in QWEN_SIZES} == QWEN_SIZES
    assert network_size((1, 500), 28) == (28, 504)  # where the loader raises an error: sides in a ratio above 200


@pytest.mark.parametrize("size", [(512, 512), (454, 335), (832, 1216), (3, 500), (1, 1)])
def test_visualquality_sees_pillows_pixels(size):
    """As qwen_vl_utils, the authors' loader, resizes. The processor then only cuts patches."""
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 4 * 28**2, "longest_edge": 16384 * 28**2})  # as released
    scorer = VisualQualityR1.__new__(VisualQualityR1)  # without a network
    scorer.processor = SimpleNamespace(image_processor=processor)
    width, height = QWEN_SIZES[size]
    found = scorer.resized([Sample(noise(size), "", (0, 0))])
    assert np.array_equal(np.asarray(found[0]), np.asarray(noise(size).resize((width, height), Image.BICUBIC)))
    assert processor(found, return_tensors="pt")["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]


def test_visualquality_leaves_out_what_its_processor_does_not_take():
    """The others of the batch have their rating; (1, 500) has a ratio of 18 at the network's size."""
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 4 * 28**2, "longest_edge": 16384 * 28**2})
    scorer = VisualQualityR1.__new__(VisualQualityR1)
    scorer.processor, scorer.sample, scorer.device = (
        SimpleNamespace(image_processor=processor),
        False,
        torch.device("cpu"),
    )
    scorer._answers = lambda samples: [f"<answer>{len(sample.image.tobytes()) % 3 + 1}</answer>" for sample in samples]
    narrow, taken = (
        Sample(noise((6000, 20)), "", (0, 1)),
        [Sample(noise((1, 500)), "", (0, 0)), Sample(noise((64, 65)), "", (0, 2))],
    )
    with pytest.raises(ValueError, match="aspect ratio"):
        processor(scorer.resized([narrow]), return_tensors="pt")
    processor(scorer.resized(taken), return_tensors="pt")
    found = scorer.score([taken[0], narrow, taken[1]])
    assert [rating.value is None for rating in found] == [False, True, False]
    assert found[1].text == "sides in a ratio above 200"


def test_visualqualitys_question_is_the_authors():
    """Word for word, with "picture"."""
    assert QUESTION == (
        "You are doing the image quality assessment task. Here is the question: What is your overall rating on the "
        "quality of this picture? The rating should be a float between 1 and 5, rounded to two decimal places, with 1 "
        "representing very poor quality and 5 representing excellent quality. Please only output the final answer with "
        "only one score in <answer> </answer> tags."
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_generated_image_is_read_unchanged(size, tmp_path):
    """A file of our own generation gives each reference the same pixels as ours."""
    save_image(noise(size), tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(open_image(tmp_path / "0.png")), np.asarray(image.convert("RGB")))
