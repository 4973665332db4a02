"""The micro-batches of a step: this rank's prompts, their embeddings, and their entries of the teacher sample pool."""

from collections.abc import Sequence
from typing import TypeVar

from dpdmd.config import Config
from dpdmd.config.image_sizes import ImageSize
from dpdmd.data.prompts import PromptWeights, global_samples, pool_prompts, prompts_of_step
from dpdmd.methods import registry, update_schedule
from dpdmd.methods.context import MicroBatch
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.utils import rng

Item = TypeVar("Item")


class Batches:
    """One rank's share of every step. Its prompts and its image size depend on the seed and the step alone.

    Args:
        global_batch_size: samples of one step, over all ranks.

    Raises:
        ValueError: the global batch does not divide over the processes.
    """

    def __init__(
        self,
        config: Config,
        prompts: Sequence[str],
        global_batch_size: int,
        processes: int,
        rank: int,
        weights: PromptWeights | None = None,
    ):
        self.config, self.global_batch_size = config, global_batch_size
        self.samples = global_samples(global_batch_size, processes, rank)
        self._all, self._weights, self._sizes = prompts, weights, config.data.image_sizes
        self._pool = pool_prompts(prompts, config.run.seed, config.method.teacher_cache_size or 0, weights)
        self._encoded: tuple[list[str], TextEmbedding] | None = None  # of the last roll-out

    def prompts(self, step: int, samples: Sequence[int] | None = None) -> list[str]:
        """Return the prompts of some of the rank's samples (default: all)."""
        samples = self.samples if samples is None else samples
        entries = self._entries(step, samples)
        if entries is not None:
            return [self._pool[i] for i in entries]
        return self._drawn(self._all, step, samples, self._weights)

    def image_size(self, step: int) -> ImageSize:
        """Return the size of a step's images."""
        return list(self._sizes)[self._size_index(step)]

    def of_step(self, step: int, encoder: TextEncoder) -> list[MicroBatch]:
        """Encode the rank's prompts of a step in one call, and cut them into `grad_accum` micro-batches."""
        text, size = self._text(self.prompts(step), encoder), self.config.optim.batch_size
        entries, source = self._entries(step, self.samples), update_schedule.rollout_step(step, self.config.method)
        return [
            MicroBatch(
                text.rows(start, start + size),
                step,
                self.samples[start : start + size],
                source,
                entries and entries[start : start + size],
                self._size_index(step),
            )
            for start in range(0, len(self.samples), size)
        ]

    def _drawn(
        self, items: Sequence[Item], step: int, samples: Sequence[int], weights: PromptWeights | None = None
    ) -> list[Item]:
        """Return the items (prompts or pool entries) that these samples of a step use.

        The draws are counted, not the steps: else an epoch would leave out what updates that do not draw would use.
        """
        method = self.config.method
        of_pool = registry.uses_sample_pool(step, method)
        draw = registry.num_draws(update_schedule.rollout_step(step, method), method, of_pool)
        return prompts_of_step(items, self.config.run.seed, draw, self.global_batch_size, samples, weights)

    def _entries(self, step: int, samples: Sequence[int]) -> list[int] | None:
        """Return the pool entries that these samples of a step use; None in an update that does not use the pool."""
        if not registry.uses_sample_pool(step, self.config.method):
            return None
        return self._drawn(range(len(self._pool)), step, samples)

    def _size_index(self, step: int) -> int:
        """Return the place of a step's size among the sizes. Steps that share a roll-out have one size."""
        if len(self._sizes) == 1:
            return 0
        source = update_schedule.rollout_step(step, self.config.method)
        return rng.weighted_index(list(self._sizes.values()), self.config.run.seed, "image size", source)

    def _text(self, prompts: list[str], encoder: TextEncoder) -> TextEmbedding:
        """Return the embeddings of a roll-out's prompts, which the steps that share the roll-out encode once."""
        if self._encoded is None or self._encoded[0] != prompts:
            self._encoded = prompts, encoder.encode(prompts)
        return self._encoded[1]
