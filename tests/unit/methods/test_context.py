"""Grids, random draws and teacher samples: each depends on the sample's place, not on the batch that it is in."""

import math
from dataclasses import replace

import pytest
import torch
from small_distillation import CPU, STEPS

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.options import MethodConfig
from dpdmd.methods.context import DistillationContext
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.utils import rng

FLOW = FlowSchedule(shift=3.0)
BY_SIZE = EvenFlowSchedule(lambda pixels, steps: math.exp(pixels / 2**20 + 1 / steps))


def test_each_role_has_its_own_grid():
    """Student on its named grid, teacher on its 30 steps, score on 1000 times without the final 0; all in fp32."""
    grids = DistillationContext.grids(MethodConfig(student_sigmas="trailing"), FLOW, CPU)
    assert torch.equal(grids["student_sigmas"], FLOW.trailing_sigmas(4))
    assert torch.equal(grids["teacher_sigmas"], FLOW.default_sigmas(30))
    assert torch.equal(grids["score_sigmas"], FLOW.default_sigmas(1000)[:1000])
    assert torch.equal(DistillationContext.grids(MethodConfig(), FLOW, CPU)["student_sigmas"], FLOW.default_sigmas(4))
    with pytest.raises(ValueError, match="3 sigmas, but the student takes 4"):
        DistillationContext.grids(MethodConfig(student_sigmas="1,0.9,0.5"), FLOW, CPU)


def test_each_image_size_has_its_own_schedule():
    """Schedule and grids of each size, if they differ; else one of them, which `load_schedule` returned."""
    sizes, config = [ImageSize(1024, 1024), ImageSize(512, 768)], MethodConfig(student_sigmas="trailing")
    sized = DistillationContext.sized_grids(config, BY_SIZE, sizes, CPU)
    for size, grids in zip(sizes, sized, strict=True):
        own = BY_SIZE.at_size(*size)
        assert torch.equal(grids["schedule"].trailing_sigmas(4), own.trailing_sigmas(4))
        assert torch.equal(grids["student_sigmas"], own.trailing_sigmas(4))
        assert torch.equal(grids["teacher_sigmas"], own.default_sigmas(30))
        assert torch.equal(grids["score_sigmas"], own.score_sigmas(30))
    for name in ("student_sigmas", "teacher_sigmas", "score_sigmas"):
        assert not torch.equal(sized[0][name], sized[1][name])
    numbers = DistillationContext.sized_grids(MethodConfig(student_sigmas="1,.8,.5,.3"), BY_SIZE, sizes, CPU)
    assert torch.equal(numbers[0]["student_sigmas"], numbers[1]["student_sigmas"])
    (only,) = DistillationContext.sized_grids(config, FLOW, sizes, CPU)
    assert only["schedule"] is FLOW


def test_a_context_of_another_size_shares_all_else(make):
    run = make()
    assert run.at_size(0) is run and run.at_size(1) is run  # one schedule for all sizes
    sizes = [ImageSize(64, 64), ImageSize(32, 64)]
    grids = DistillationContext.sized_grids(run.config, BY_SIZE, sizes, CPU)
    run = replace(run, grids_by_size=grids, **grids[0])
    other = run.at_size(1)
    assert other.schedule is grids[1]["schedule"] and other.teacher_sigmas is grids[1]["teacher_sigmas"]
    assert other.networks is run.networks and other.shared_samples is run.shared_samples
    assert torch.equal(other.at_size(0).student_sigmas, run.student_sigmas)


def test_score_times_per_sample_and_per_batch(make, batch):
    """One time a sample, or the release's one a batch; either from the score's grid, new in every step."""
    x = torch.zeros(4, 8, 8, 8)
    each, one = make(), make(dmd_t="per_batch")
    _, sigma, noise = each.score_input(batch(0, 1, 2, 3), x)
    assert len(sigma.unique()) == 4 and torch.isin(sigma, each.score_sigmas).all()
    _, shared, shared_noise = one.score_input(batch(0, 1, 2, 3), x)
    assert len(shared.unique()) == 1
    assert torch.equal(noise, shared_noise) and not torch.equal(noise[0], noise[1])  # the noise stays each sample's own
    assert torch.equal(one.score_input(batch(2, 3), x[:2])[1], shared[:2])  # of the step's batch, not the micro-batch
    assert not torch.equal(one.score_input(batch(0, 1, 2, 3, step=6), x)[1], shared)
    assert len(each.score_sigmas) == 1000 and each.score_sigmas.min() > 0


def test_noise_belongs_to_the_sample_not_to_the_split(make, batch):
    """Sample i of a step draws the same start noise, time and score noise in any micro-batch; purposes do not share."""
    run, x = make(), torch.zeros(4, 8, 8, 8)
    whole = run.start_noise(batch(0, 1, 2, 3)), *run.score_input(batch(0, 1, 2, 3), x)
    parts = [(run.start_noise(batch(*s)), *run.score_input(batch(*s), x[: len(s)])) for s in ((0,), (1, 2), (3,))]
    for index, value in enumerate(whole):
        assert torch.equal(value, torch.cat([part[index] for part in parts]))
    assert not torch.equal(whole[0], whole[3])  # start noise and score noise are two draws
    assert not torch.equal(whole[0], run.start_noise(batch(0, 1, 2, 3, step=6)))


def test_the_discriminators_inputs_share_the_time_and_not_the_noise(make, batch):
    """Teacher and student samples are noised to one level, and no further alike."""
    run, x = make(method="dmd_gan"), torch.zeros(2, 8, 8, 8)
    student, teacher = (run.discriminator_input(batch(0, 1), x, role) for role in ("student", "teacher"))
    assert torch.equal(student[1], teacher[1]) and not torch.equal(student[0], teacher[0])
    assert not torch.equal(student[1], run.score_input(batch(0, 1), x)[1])


def test_the_names_of_the_draws_stay(make, batch):
    """A name is data of a run, as a seed is: a renamed draw would change the losses of a run that resumes."""
    run, mine, x = make(method="dmd_gan"), batch(0, 1), torch.zeros(2, 8, 8, 8)

    def noise(purpose: str, step: int = 5) -> torch.Tensor:
        return rng.normal_per_sample((8, 8, 8), run.seed, purpose, step, [0, 1])

    def sigma(purpose: str) -> torch.Tensor:
        return run.score_sigmas[rng.integers_per_sample(1000, run.seed, purpose, 5, [0, 1])]

    assert torch.equal(run.start_noise(mine), noise("start noise"))
    assert torch.equal(run.pool_noise([0, 1]), noise("pool noise", step=0))
    _, at, eps = run.score_input(mine, x)
    assert torch.equal(at, sigma("score time")) and torch.equal(eps, noise("score noise"))
    for role in ("student", "teacher"):
        z_t, at = run.discriminator_input(mine, x, role)
        assert torch.equal(at, sigma("critic time"))
        assert torch.equal(z_t, at.reshape(2, 1, 1, 1) * noise(f"critic noise of the {role}"))


def test_the_noise_of_a_pool_sample_is_the_same_in_every_step(make, batch):
    run = make(method="dmd_lpips", teacher_cache_size=9)
    one, other = (replace(batch(0, 1, step=step), pool_indices=(7, 2)) for step in (5, 11))
    assert torch.equal(run.start_noise(one), run.start_noise(other))
    assert not torch.equal(run.start_noise(one), run.start_noise(replace(one, pool_indices=(2, 7))))
    assert not torch.equal(run.start_noise(one), run.start_noise(replace(batch(0, 1), samples=(7, 2))))


def test_a_teacher_sample_does_not_depend_on_the_batch(make, batch):
    """Alone, among others, and in another place: the same bits, or a stored sample would not be the one made anew."""
    run = make(method="dmd_lpips")
    both = run.teacher_samples(batch(0, 1))
    assert torch.equal(both[1:], run.teacher_samples(batch(1)))
    assert torch.equal(both.flip(0), run.teacher_samples(batch(1, 0)))
    assert len(both) == 2 and both.device == CPU and len(run.teacher_sigmas) > STEPS
