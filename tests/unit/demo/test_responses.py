"""The page's requests and the HTML of its answers."""

import base64
import io

import pytest
import torch
from PIL import Image, ImageChops

from dpdmd.demo.comparison import PIXELS, Comparison, ModelImages
from dpdmd.demo.models import LoadedModel
from dpdmd.demo.responses import MAX_IMAGES, MAX_LETTERS, model_row, read_request, respond, status
from dpdmd.sampling.sampler import SamplerSettings

SETTINGS = SamplerSettings(torch.tensor([1.0, 0.6, 0.0]), 1.0, 64, 64)


class OneSampler:
    settings = SETTINGS


class FixedComparison(Comparison):
    """A comparison whose images are given, or an error."""

    def sample(self, prompt, seeds):
        image = Image.new("RGB", (64, 64), (200, 30, 40))
        yield ModelImages(1, [image] * len(seeds), 0.5, {PIXELS: 0.25})
        if prompt == "too much":
            raise MemoryError("out of memory")
        if prompt == "not finite":
            raise ValueError("--model teacher: its images are not finite")
        yield ModelImages(0, [image] * len(seeds), 2, {})


COMPARISON = FixedComparison([LoadedModel(name, OneSampler, None) for name in ("teacher", "mine")], [], 4)


def test_a_request_gives_consecutive_seeds():
    assert read_request(" a red circle\n", 3, 7.0) == ("a red circle", [7, 8, 9])
    assert read_request("x" * MAX_LETTERS, MAX_IMAGES, 2**32 - MAX_IMAGES)[1][-1] == 2**32 - 1


@pytest.mark.parametrize(
    ("request_values", "says"),
    [
        (("x" * 5000, 1, 0), "the prompt has 5,000 letters: at most 2,000 are allowed"),
        (("x" * 300_000, 1, 0), "letters"),
        (("", 1, 0), "the prompt: is empty"),
        ((None, 1, 0), "the prompt: is empty"),
        (("\u200b\x07", 1, 0), "the prompt: is empty"),
        (("a \ud800", 1, 0), "is not UTF-8"),
        (("a", 0, 0), "the number of images must be a whole number, 1 to 16"),
        (("a", 17, 0), "the number of images"),
        (("a", None, 0), "the number of images"),
        (("a", True, 0), "the number of images"),
        (("a", float("nan"), 0), "the number of images"),
        (("a", float("inf"), 0), "the number of images"),
        (("a", [1], 0), "the number of images"),
        (("a", "4", 0), "the number of images"),
        (("a", 2, 1.5), "the first seed must be a whole number, 0 to 4294967294"),
        (("a", 2, -1), "the first seed"),
        (("a", 2, 2**32 - 1), "the first seed"),
    ],
)
def test_a_wrong_request_gets_one_line(request_values, says):
    with pytest.raises(ValueError, match=says):
        read_request(*request_values)
    (answer,) = respond(COMPARISON, *request_values)
    assert says in answer[0] and 'class="error"' in answer[0] and len(answer) == 3
    assert "img" not in "".join(answer)


def test_the_rows_fill_as_models_finish():
    steps = list(respond(COMPARISON, "a <b>red</b> circle", 2, 5))
    assert ["img" in row for step in steps for row in step[1:]] == [False, False, False, True, True, True]
    assert "1 of 2 models done" in steps[1][0] and "Images of" in steps[2][0]
    assert all("a &lt;b&gt;red&lt;/b&gt; circle" in step[0] and "<b>" not in step[0] for step in steps)
    teacher, mine = steps[2][1:]
    assert "2 steps · guidance 1 · 0.50 s for 2 images · pixel distance 0.250" in mine
    assert "2.00 s for 2 images</p>" in teacher
    assert mine.count("<img") == 2 and 'alt="mine, seed 6"' in mine


@pytest.mark.parametrize("prompt", ["too much", "not finite"])
def test_an_error_while_sampling_keeps_what_is_done(prompt):
    steps = list(respond(COMPARISON, prompt, 1, 0))
    assert 'class="error"' in steps[-1][0] and "img" in steps[-1][2] and "img" not in steps[-1][1]
    assert ("out of memory" in steps[-1][0]) == (prompt == "too much")


def test_names_and_messages_are_text():
    """A folder's name may hold HTML, too."""
    bad = '<img src=x onerror="alert(1)">'
    for html in (status(bad, prompt=bad), status(bad, error=True), model_row(bad, SETTINGS)):
        assert "<img" not in html and "&lt;img" in html and 'onerror="' not in html


def test_small_images_arrive_unchanged_and_large_ones_small():
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy())
    sent = _image_in(model_row("m", SETTINGS, ModelImages(0, [image], 1, {}), [0]))
    assert sent.format == "PNG" and ImageChops.difference(sent, image).getbbox() is None
    large = image.resize((512, 512), Image.Resampling.BICUBIC)
    settings = SamplerSettings(SETTINGS.sigmas, 1.0, 512, 512)
    sent = _image_in(model_row("m", settings, ModelImages(0, [large], 1, {}), [0]))
    assert sent.format == "WEBP" and sent.size == (512, 512)


def _image_in(html: str) -> Image.Image:
    data = html.partition(";base64,")[2].partition('"')[0]
    return Image.open(io.BytesIO(base64.b64decode(data)))
