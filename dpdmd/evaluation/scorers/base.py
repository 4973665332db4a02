"""What every scorer shares: the samples it takes, the scores it gives, and strict loading."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """One picture to score.

    Attributes:
        picture: RGB, as a person would see it.
        prompt: what it was made for; "" where nobody knows.
        key: (prompt index, sample index); names whatever a scorer draws at random.
    """

    picture: Image.Image
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
    """A network that judges pictures; loaded once, moved at will, called with any number of samples.

    A subclass sets `name` and fills in `score`, or `features` for a scorer that compares pictures with each other.
    """

    name: ClassVar[str]
    network: nn.Module
    device: torch.device

    def _place(self, network: nn.Module, device: torch.device) -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.device = device

    def batch_size(self, wanted: int) -> int:
        """Samples to give it at a time where `wanted` may be given.

        One on a CPU: there a matrix kernel's last bits change with the batch, and a larger one gains nothing.
        """
        return 1 if self.device.type == "cpu" else wanted

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.network.to(device)
        self.device = device


class FeatureScorer(Scorer):
    """A scorer of sets: what it says of one picture is a direction in feature space."""

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """L2-normalised features [B, D], fp32, on the CPU."""
        raise NotImplementedError


class ValueScorer(Scorer):
    """A scorer of single pictures.

    Attributes:
        also: further names under which its value is reported, each with the factor it is multiplied by.
    """

    also: ClassVar[dict[str, float]] = {}

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score a sample."""
        raise NotImplementedError


def load_strict(kind: type, folder: Path, **options: Any) -> nn.Module:
    """A transformers model of a local folder, in fp32 unless `options` say otherwise; nothing is downloaded.

    Raises:
        ValueError: a weight that the model needs is absent or has another shape (transformers would make it up).
    """
    try:
        network, report = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, **{"dtype": torch.float32, **options}
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{folder} does not load as a {kind.__name__}: {str(error).splitlines()[0]}") from None
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"{folder} does not fit a {kind.__name__}: {len(lacking)} weights lack ({lacking[0]}, ...)")
    return network


def on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """A processor's pixels where the network is, in memory of torch's own.

    What comes from NumPy lies at any address, and matrix kernels may sum in another order at another alignment.
    """
    return pixels.clone().to(device)


def normalise(features: Tensor) -> Tensor:
    """Unit length, fp32, on the CPU."""
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
