"""What a step works on: this rank's prompts, which of the pool's entries they are, their text, in micro-batches."""

from collections.abc import Sequence
from typing import TypeVar

from dpdmd.config import Config
from dpdmd.data.prompts import global_samples, pool_prompts, prompts_of_step
from dpdmd.methods import registry, update_schedule
from dpdmd.methods.context import MicroBatch
from dpdmd.models.base import TextEmbedding, TextEncoder

Item = TypeVar("Item")


class Batches:
    """Every step's share of one rank; which prompts it has depends on the seed and the step alone.

    Args:
        global_batch_size: samples a step, of all ranks.

    Raises:
        ValueError: the global batch does not divide over the processes.
    """

    def __init__(self, config: Config, prompts: Sequence[str], global_batch_size: int, processes: int, rank: int):
        self.config, self.global_batch_size = config, global_batch_size
        self.samples = global_samples(global_batch_size, processes, rank)
        self._all = prompts
        self._pool = pool_prompts(prompts, config.run.seed, config.method.teacher_cache_size or 0)
        self._encoded: tuple[list[str], TextEmbedding] | None = None  # the last roll-out step's prompts

    def prompts(self, step: int, samples: Sequence[int] | None = None) -> list[str]:
        """Of these of the rank's samples, or of all of them."""
        samples = self.samples if samples is None else samples
        entries = self._entries(step, samples)
        return self._of_step(self._all, step, samples) if entries is None else [self._pool[i] for i in entries]

    def of_step(self, step: int, encoder: TextEncoder) -> list[MicroBatch]:
        """The rank's prompts of a step, encoded in one go and cut into `grad_accum` pieces."""
        text, size = self._text(self.prompts(step), encoder), self.config.optim.batch_size
        entries, source = self._entries(step, self.samples), update_schedule.rollout_step(step, self.config.method)
        return [
            MicroBatch(
                text.rows(start, start + size),
                step,
                self.samples[start : start + size],
                source,
                entries and entries[start : start + size],
            )
            for start in range(0, len(self.samples), size)
        ]

    def _of_step(self, items: Sequence[Item], step: int, samples: Sequence[int]) -> list[Item]:
        """Those of `items`, prompts or entries of the pool, that these samples of a step work on."""
        source = update_schedule.rollout_step(step, self.config.method)
        return prompts_of_step(items, self.config.run.seed, source, self.global_batch_size, samples)

    def _entries(self, step: int, samples: Sequence[int]) -> list[int] | None:
        """Which of the pool of teacher samples these samples of a step are; None in a turn that has new ones."""
        if not registry.uses_sample_pool(step, self.config.method):
            return None
        return self._of_step(range(len(self._pool)), step, samples)

    def _text(self, prompts: list[str], encoder: TextEncoder) -> TextEmbedding:
        """The prompts of one roll-out step, encoded when the first of the steps that share it comes."""
        if self._encoded is None or self._encoded[0] != prompts:
            self._encoded = prompts, encoder.encode(prompts)
        return self._encoded[1]
