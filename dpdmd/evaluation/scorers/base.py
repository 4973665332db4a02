"""Base classes of the scorers, and the samples and scores that they exchange."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor, nn

Check = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """One image to score.

    Attributes:
        image: RGB, as a person would see it.
        prompt: "" if it is not known.
        key: (prompt index, sample index); seeds the scorer's random draws.
    """

    image: Image.Image
    prompt: str
    key: tuple[int, int]


@dataclass(frozen=True)
class Score:
    """One scorer's result for one sample.

    Attributes:
        value: None if the scorer gave none; it is then left out of means, counted and reported.
        text: what is worth keeping beside the value, such as an answer that could not be parsed.
    """

    value: float | None
    text: str = ""


class Scorer:
    """A network that scores images. It is loaded once and takes any number of samples a call.

    Subclass `FeatureScorer` or `ValueScorer`. The constructor takes the paths of the scorer's files in the order of
    its row in `config/scorer_table.py`, then the device, then the row's options.

    Attributes:
        name: the row's; `build_scorer` sets it.
        rescaled: other names under which a score is reported, each with a factor.
    """

    name: str
    rescaled: Mapping[str, float] = MappingProxyType({})
    network: nn.Module
    device: torch.device

    @classmethod
    def checks(cls, *paths: Path) -> Sequence[Check | None]:
        """Return a check for each file, None if another file's check covers it.

        A check raises ValueError, OSError or ImportError if the libraries will not load the file.
        """
        raise NotImplementedError

    def set_network(self, network: nn.Module, device: torch.device, *, widen: bool = True) -> None:
        """Put the network on its device: as loaded on a GPU; on a CPU in fp64 if `widen`.

        A matrix kernel's order of summation changes with the batch size. In fp32 that shows in a score's sixth digit.
        In fp64, at twice the cost, it does not, so a CPU may score in batches.
        """
        dtype = torch.float64 if widen and device.type == "cpu" else None
        self.network = network.requires_grad_(False).eval().to(device, dtype)
        self.device = device

    def offload(self) -> None:
        """Move the network to the CPU until `load_to_device`."""
        self.network.to("cpu")

    def load_to_device(self) -> None:
        """Move the network back to its device."""
        self.network.to(self.device)

    def to_network(self, pixels: Tensor) -> Tensor:
        """Return pixels on the network's device, in its dtype."""
        return pixels.to(self.device, next(self.network.parameters()).dtype)


class FeatureScorer(Scorer):
    """A scorer that compares images with each other by their features."""

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return L2-normalised features [B, D], fp64, on the CPU."""
        raise NotImplementedError


class ValueScorer(Scorer):
    """A scorer of single images."""

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Return one score for each sample."""
        raise NotImplementedError


def normalise(features: Tensor) -> Tensor:
    """Return features [..., D] at unit length, fp64, on the CPU."""
    return torch.nn.functional.normalize(features.double(), dim=-1).cpu()
