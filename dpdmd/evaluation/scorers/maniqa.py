"""MANIQA (PIPAL weights) in pyiqa's architecture: quality without a reference image, the mean over random crops."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from dpdmd.evaluation.scorers.base import Check, Sample, Score, ValueScorer
from dpdmd.models.network_files import read_checkpoint
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.rng import numpy_generator

CROP = 224
NUM_CROPS = 10  # of the authors' release
RELEASE_SCALE = 0.8  # of the release; pyiqa's own for PIPAL is 0.13


def load_network(path: Path, scale: float = RELEASE_SCALE) -> nn.Module:
    """Load pyiqa's MANIQA in fp32; its attention is multiplied by `scale`.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: the weights do not fit.
    """
    state = read_checkpoint(path)
    import timm  # after reading the file, so that a broken file is reported without pyiqa, too
    from pyiqa.archs.maniqa_arch import MANIQA

    build = timm.create_model
    # pyiqa would download the backbone's ImageNet weights and then overwrite them with the checkpoint's.
    with mock.patch.object(timm, "create_model", lambda name, pretrained: build(name, pretrained=False)):
        network = MANIQA(pretrained=False, scale=scale, test_sample=1)
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} is no MANIQA checkpoint ({shorten_error(error)})") from None
    return network.float()  # whatever the file's dtype is


class Maniqa(ValueScorer):
    """Mean MANIQA score of `num_crops` random 224 x 224 crops (paper, table 1: about 1).

    An image's crops depend only on the seed and the image's key. An image with a side below 224 is first enlarged to
    224, bilinearly.
    """

    @classmethod
    def checks(cls, path: Path) -> Sequence[Check]:
        return [lambda: load_network(path)]  # not on the meta device: timm computes with its layers' rates

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
        self.set_network(network, device, widen=False)  # an image's crops are a batch of their own

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(self.network(self._crops(sample).to(self.device)).mean().item()) for sample in samples]

    def _crops(self, sample: Sample) -> torch.Tensor:
        """Return crops [num_crops, 3, 225, 225]; pyiqa uses the upper left 224 x 224 pixels of each."""
        array = np.asarray(_enlarge(sample.image, CROP), dtype=np.float32) / 255
        height, width = array.shape[:2]
        draw = numpy_generator(self.seed, "MANIQA crop", *sample.key)
        corners = draw.integers((0, 0), (height - CROP + 1, width - CROP + 1), size=(self.num_crops, 2))
        crops = np.stack([array[top : top + CROP, left : left + CROP] for top, left in corners])
        return torch.nn.functional.pad(torch.from_numpy(crops).permute(0, 3, 1, 2), (0, 1, 0, 1))


def _enlarge(image: Image.Image, side: int) -> Image.Image:
    """Enlarge an image if its short side is below `side`."""
    short = min(image.size)
    if short >= side:
        return image
    return image.resize(tuple(max(side, round(length * side / short)) for length in image.size), Image.BILINEAR)
