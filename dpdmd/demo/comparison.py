"""Sample one prompt with every model from the same noises, and measure the diversity of what is shown."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from dpdmd.config.scorer_table import METRIC_LABELS
from dpdmd.demo.models import LoadedModel
from dpdmd.evaluation.diversity import diversity_per_image, pixel_distance
from dpdmd.evaluation.scorers.base import FeatureScorer, Sample
from dpdmd.models.base import TextEmbedding
from dpdmd.sampling.sampler import check_finite
from dpdmd.utils.image_grid import to_pil

PIXELS = "pixel distance"


@dataclass(frozen=True)
class ModelImages:
    """The images of one model.

    Attributes:
        index: place of the model.
        seconds: time to encode the prompt, to sample and to decode.
        diversity: measure -> value over all pairs of the images; empty for a single image.
    """

    index: int
    images: list[Image.Image]
    seconds: float
    diversity: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """The loaded models, teacher first. It may be used by several threads: one at a time computes.

    A tokenizer keeps the padding and truncation of its last call, so it gives wrong tokens to two threads at once.
    """

    models: Sequence[LoadedModel]
    scorers: Sequence[FeatureScorer]
    batch_size: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def sample(self, prompt: str, seeds: Sequence[int]) -> Iterator[ModelImages]:
        """Yield the images of each model, students before their teacher, which takes longest.

        The image of a seed is that of `dpdmd.generate --seed SEED --num_images 1`, up to the last bits.

        Raises:
            ValueError: a model's images are not finite.
        """
        for index in (*range(1, len(self.models)), 0):
            with self._lock:
                result = self._sample_model(index, prompt, seeds)
            yield result  # without the lock: the caller may never come back

    def _sample_model(self, index: int, prompt: str, seeds: Sequence[int]) -> ModelImages:
        model = self.models[index]
        start = time.perf_counter()
        images = _sample(model, prompt, seeds, self.batch_size)
        seconds = time.perf_counter() - start
        check_finite(images, model.name)
        shown = to_pil(images)
        return ModelImages(index, shown, seconds, self._diversity(images, shown, prompt))

    def _diversity(self, images: Tensor, shown: Sequence[Image.Image], prompt: str) -> dict[str, float]:
        if len(images) < 2:
            return {}
        samples = [Sample(image, prompt, (0, number)) for number, image in enumerate(shown)]
        values = {PIXELS: pixel_distance(images)}
        for scorer in self.scorers:
            per_image = diversity_per_image(scorer.features(samples))
            values[METRIC_LABELS[scorer.name]] = sum(per_image) / len(per_image)
        return values


def _sample(model: LoadedModel, prompt: str, seeds: Sequence[int], batch_size: int) -> Tensor:
    """Return images [len(seeds), 3, H, W] in [0, 1], on the CPU."""
    row = model.encoder.encode([prompt])
    made = []
    for start in range(0, len(seeds), batch_size):
        some = seeds[start : start + batch_size]
        eps = torch.cat([model.sampler.start_noise([(0, 0)], seed) for seed in some])
        text = TextEmbedding.concatenate([row] * len(some))
        made.append(model.sampler.decoder.decode(model.sampler.latents(text, eps)).cpu())
    return torch.cat(made)
