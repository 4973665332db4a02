"""The micro-batches of a step: the ranks' shares join to one global batch, and shared roll-outs are encoded once."""

import pytest
import torch

from dpdmd.config import Config
from dpdmd.methods.registry import uses_sample_pool
from dpdmd.methods.update_schedule import rollout_step
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.training.batches import Batches

PROMPTS = [f"prompt {index}" for index in range(10)]


class Encoder(TextEncoder):
    """The number in each prompt; records its calls."""

    def __init__(self):
        self.calls: list[list[str]] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.calls.append(prompts)
        numbers = torch.tensor([float(prompt.rpartition(" ")[2]) for prompt in prompts])
        return TextEmbedding(numbers.reshape(-1, 1, 1), numbers.reshape(-1, 1))


def config(**method: object) -> Config:
    config = Config()
    config.optim.batch_size = 2
    for name, value in method.items():
        setattr(config.method, name, value)
    return config


@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_and_micro_batches_join_to_one_global_batch(processes):
    settings = config()
    settings.optim.grad_accum = 4 // (2 * processes)
    whole = Batches(config(), PROMPTS, 4, 1, 0)
    for step in range(5):
        parts = [
            batch
            for rank in range(processes)
            for batch in Batches(settings, PROMPTS, 4, processes, rank).of_step(step, Encoder())
        ]
        assert [len(batch.text) for batch in parts] == [2, 2]
        assert [sample for batch in parts for sample in batch.samples] == [0, 1, 2, 3]
        used = [f"prompt {int(number)}" for batch in parts for number in batch.text.pooled[:, 0]]
        assert used == whole.prompts(step)
        assert whole.prompts(step, [1, 3]) == used[1::2]
    assert len({prompt for step in range(5) for prompt in whole.prompts(step)}) == 10  # two epochs of ten prompts


def test_a_global_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="does not divide over 2 processes"):
        Batches(config(), PROMPTS, 3, 2, 0)


def test_steps_that_share_a_rollout_encode_its_prompts_once():
    batches, encoder = Batches(config(fake_rollout_reuse=2), PROMPTS, 4, 1, 0), Encoder()
    sources = [batches.of_step(step, encoder)[0].rollout_step for step in range(6)]
    assert sources == [0, 0, 2, 2, 4, 5]
    assert encoder.calls == [batches.prompts(step) for step in (0, 2, 4, 5)]


def test_an_update_with_teacher_samples_uses_the_pool():
    batches = Batches(config(method="dmd_lpips", teacher_cache_size=3, per_train_fake_num=1), PROMPTS, 4, 1, 0)
    fake, student = (batches.of_step(step, Encoder())[0] for step in (0, 1))
    assert fake.pool_indices is None and set(student.pool_indices) <= {0, 1, 2}
    assert len(set(batches.prompts(1))) <= 3 < len(set(batches.prompts(0)))


def whole_epochs(order: list, number: int) -> list[list]:
    return [order[start : start + number] for start in range(0, len(order) - number + 1, number)]


@pytest.mark.parametrize("method", ["dpdmd", "dmd_lpips", "dmd_gan"])
@pytest.mark.parametrize("reuse", [1, 2])
def test_an_epoch_visits_every_prompt_once_whichever_updates_draw(method, reuse):
    pool = {} if method == "dpdmd" else {"teacher_cache_size": 8}
    settings = config(method=method, per_train_fake_num=2, fake_rollout_reuse=reuse, **pool)
    batches = Batches(settings, PROMPTS, 2, 1, 0)
    sources = [step for step in range(60) if rollout_step(step, settings.method) == step]
    pooled = [step for step in sources if uses_sample_pool(step, settings.method)]
    drawn = [prompt for step in sources if step not in pooled for prompt in batches.prompts(step)]
    entries = [entry for step in pooled for entry in batches.of_step(step, Encoder())[0].pool_indices]
    assert all(set(epoch) == set(PROMPTS) for epoch in whole_epochs(drawn, len(PROMPTS)))
    assert bool(entries) == bool(pool) and all(set(epoch) == set(range(8)) for epoch in whole_epochs(entries, 8))
