"""MANIQA (PIPAL weights) through pyiqa's architecture: quality without a reference, the mean over random crops."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from dpdmd.evaluation.scorers.base import Sample, Score, ValueScorer
from dpdmd.models.weight_files import read_checkpoint
from dpdmd.utils.rng import numpy_generator
from dpdmd.utils.text_files import shorten_error

CROP = 224
NUM_CROPS = 10  # of the authors' release
RELEASE_SCALE = 0.8  # of the release; pyiqa's own for PIPAL is 0.13


def load_network(path: Path, scale: float = RELEASE_SCALE) -> nn.Module:
    """pyiqa's MANIQA, fp32, with the weights of a file; its attention is multiplied by `scale`.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: the weights do not fit.
    """
    state = read_checkpoint(path)
    import timm  # after the files: a broken one is told of without pyiqa, too
    from pyiqa.archs.maniqa_arch import MANIQA

    build = timm.create_model
    # pyiqa would fetch the backbone's ImageNet weights, only to overwrite them with the checkpoint's.
    with mock.patch.object(timm, "create_model", lambda name, pretrained: build(name, pretrained=False)):
        network = MANIQA(pretrained=False, scale=scale, test_sample=1)
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} is no MANIQA checkpoint ({shorten_error(error)})") from None
    return network.float()  # whatever the file's numbers are


class Maniqa(ValueScorer):
    """Mean MANIQA score of `num_crops` random 224 x 224 crops (paper, table 1: about 1).

    An image's crops depend on (seed, its key) alone. An image with a side below 224 is enlarged to it, bilinearly.
    """

    name = "maniqa"

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        num_crops: int = NUM_CROPS,
        scale: float = RELEASE_SCALE,
        seed: int = 0,
    ):
        network = load_network(path, scale)
        self.num_crops, self.seed = num_crops, seed
        self._place(network, device, widen=False)  # one image's crops are a batch of their own

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(self.network(self._crops(sample).to(self.device)).mean().item()) for sample in samples]

    def _crops(self, sample: Sample) -> torch.Tensor:
        """[num_crops, 3, 225, 225], of which pyiqa takes the upper left 224 x 224 as they are."""
        array = np.asarray(_at_least(sample.image, CROP), dtype=np.float32) / 255
        height, width = array.shape[:2]
        draw = numpy_generator(self.seed, "MANIQA crop", *sample.key)
        corners = draw.integers((0, 0), (height - CROP + 1, width - CROP + 1), size=(self.num_crops, 2))
        crops = np.stack([array[top : top + CROP, left : left + CROP] for top, left in corners])
        return torch.nn.functional.pad(torch.from_numpy(crops).permute(0, 3, 1, 2), (0, 1, 0, 1))


def _at_least(image: Image.Image, side: int) -> Image.Image:
    """The image, enlarged where its short side is below `side`."""
    short = min(image.size)
    if short >= side:
        return image
    return image.resize(tuple(max(side, round(length * side / short)) for length in image.size), Image.BILINEAR)
