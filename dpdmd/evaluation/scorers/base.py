"""What every scorer shares: the samples it takes, the scores it gives, and strict loading."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """One image to score.

    Attributes:
        image: RGB, as a person would see it.
        prompt: what it was made for; "" where nobody knows.
        key: (prompt index, sample index); names whatever a scorer draws at random.
    """

    image: Image.Image
    prompt: str
    key: tuple[int, int]


@dataclass(frozen=True)
class Score:
    """One scorer's judgement of one sample.

    Attributes:
        value: None where there is none: never made up, left out of means, counted and reported.
        text: what is worth keeping beside the value, such as an answer that could not be parsed.
    """

    value: float | None
    text: str = ""


class Scorer:
    """A network that judges images; loaded once, moved at will, called with any number of samples.

    A subclass sets `name` and fills in `score`, or `features` for a scorer that compares images with each other.
    """

    name: ClassVar[str]
    network: nn.Module
    device: torch.device

    def _place(self, network: nn.Module, device: torch.device, *, widen: bool = True) -> None:
        """Where it works: as loaded on a GPU; on a CPU in fp64, unless not `widen`.

        A matrix kernel's order of summation changes with the batch. In fp32 that shows in a score's sixth digit; in
        fp64, at twice the work, it does not, so that a CPU may score in batches.
        """
        dtype = torch.float64 if widen and device.type == "cpu" else None
        self.network = network.requires_grad_(False).eval().to(device, dtype)
        self.device = device

    def offload(self) -> None:
        """Leave the device to others until `wake`."""
        self.network.to("cpu")

    def load_to_device(self) -> None:
        """Back to where it works."""
        self.network.to(self.device)

    def _on_device(self, pixels: Tensor) -> Tensor:
        """A processor's pixels as the network wants them."""
        return pixels.to(self.device, next(self.network.parameters()).dtype)


class FeatureScorer(Scorer):
    """A scorer of sets: what it says of one image is a direction in feature space."""

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """L2-normalised features [B, D], fp64, on the CPU."""
        raise NotImplementedError


class ValueScorer(Scorer):
    """A scorer of single images.

    Attributes:
        also: further names under which its value is reported, each with the factor it is multiplied by.
    """

    also: ClassVar[dict[str, float]] = {}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score a sample."""
        raise NotImplementedError


def normalise(features: Tensor) -> Tensor:
    """Unit length, fp64, on the CPU."""
    return torch.nn.functional.normalize(features.double(), dim=-1).cpu()
