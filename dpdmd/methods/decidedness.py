"""How much of the teacher's sample is decided after K of its steps, measured without a student.

The diversity loss teaches the student's first prediction to point at the sample x_hat_K: for a flow, the straight line
from eps through the anchor z_K, followed to t = 0 (`Schedule.anchored_x0`). Of one prompt's samples, each minus their
mean over seeds:

decidedness D(K) = mean over seeds of cos(x_hat_K, x_N)    x_N: where the teacher really ends
spread      S(K) = |x_hat_K| / |x_N|, both over all seeds

Both are 1 at K = N. A K with a low D teaches the student to keep differences between seeds that the teacher's samples
do not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from dpdmd.config.anchor_search import LATENTS, NUM_SEEDS, PIXELS
from dpdmd.methods.anchor import anchor_target
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.models.noise_schedule import Schedule
from dpdmd.sampling.rollout import rollout
from dpdmd.sampling.sampler import Sampler, batches_of

ROUNDING = 1e-6  # of fp32: samples that differ by less are equal
MAX_CURVE = 60  # values of K on one curve: of a prompt's seeds, the latents of each K are kept on the host
MAX_DECODED = 512 * 512  # pixels of an image: one decoding for each seed and K of larger ones costs too much
DECODED = 4  # images at a time


@dataclass(frozen=True)
class CurveSettings:
    """What a curve is measured with.

    Attributes:
        steps: the values of K, rising; the last is the number of the teacher's steps, N.
        space: PIXELS or LATENTS, in which samples are compared.
        batch_size: samples of every network call.
    """

    steps: tuple[int, ...]
    space: str
    num_seeds: int = NUM_SEEDS
    seed: int = 0
    batch_size: int = 4


@dataclass(frozen=True)
class Curve:
    """D(K) and S(K) of one prompt, a value for each of `CurveSettings.steps`."""

    decidedness: tuple[float, ...]
    spread: tuple[float, ...]


def curve_steps(num_steps: int) -> tuple[int, ...]:
    """Return the values of K to measure: all up to `num_steps`, or if these are more, MAX_CURVE evenly spaced ones."""
    return tuple(torch.linspace(1, num_steps, min(num_steps, MAX_CURVE), dtype=torch.float64).round().int().tolist())


def cheap_space(height: int, width: int) -> str:
    """Return PIXELS if images of this size may be decoded for every K, else LATENTS."""
    return PIXELS if height * width <= MAX_DECODED else LATENTS


@torch.no_grad()
def straight_line_ends(sampler: Sampler, text: TextEmbedding, eps: Tensor, steps: Sequence[int]) -> Tensor:
    """Return x_hat_K for each K of `steps`, [len(steps), B, C, h, w], on the host; the last is x_N.

    The teacher goes its N steps once. No call is added for the anchors: where a schedule's anchor needs the teacher's
    prediction at z_K, this is the prediction of step K + 1.
    """
    schedule, sigmas = sampler.schedule, sampler.settings.sigmas.to(eps.device)
    teacher, first = sampler.predictor(text), sigmas[0]
    wanted, ends, num_steps = set(steps), [], count()

    def predict(z: Tensor, sigma: Tensor) -> Tensor:
        prediction = teacher(z, sigma)
        if next(num_steps) in wanted:
            anchor = schedule.anchor(lambda *_: prediction, eps, z, first, sigma[0], at_end=False)
            ends.append(schedule.anchored_x0(eps, anchor, first).cpu())
        return prediction

    ends.append(rollout(predict, schedule, eps, sigmas).x.cpu())
    return torch.stack(ends)


def compare_ends(ends: Tensor, finals: Tensor) -> tuple[float, float]:
    """Return (D, S) of one prompt's x_hat_K and x_N, both [R, ...], of the same R seeds.

    Where x_hat_K is the same for all seeds, nothing is decided: D and S are 0.

    Raises:
        ValueError: x_N is the same for all seeds.
    """
    ends, samples = ends.flatten(1).float(), finals.flatten(1).float()
    ends, finals = ends - ends.mean(0), samples - samples.mean(0)
    if finals.norm() <= ROUNDING * samples.norm():
        raise ValueError("the teacher's samples of all seeds are equal: there is no variety to keep")
    cosines = torch.nn.functional.cosine_similarity(ends, finals, dim=1, eps=1e-12)
    return cosines.double().mean().item(), (ends.norm() / finals.norm()).item()


def measure_curves(
    sampler: Sampler,
    encoder: TextEncoder,
    prompts: Sequence[tuple[int, str]],
    settings: CurveSettings,
    *,
    progress: bool = True,
) -> dict[int, Curve]:
    """Measure the curve of each prompt.

    Of one prompt, the latents of all K and seeds stay on the host, and the images of two K if images are compared. An
    error is raised after the last prompt: processes that share a network's weights must call it equally often.

    Args:
        sampler: of the teacher.
        prompts: pairs of a prompt's index, which names its start noises, and its text.

    Raises:
        ValueError: the teacher's samples are not finite, or equal for all seeds.
    """
    curves, errors = {}, []
    batches = batches_of(1, settings.num_seeds, settings.batch_size)
    with tqdm(total=len(prompts) * len(batches), desc="teacher's samples", disable=not progress) as bar:
        for index, prompt in prompts:
            row, ends = encoder.encode([prompt]), []
            for batch in batches:
                filled = batch + batch[-1:] * (settings.batch_size - len(batch))  # a compiled network knows one size
                eps = sampler.start_noise([(index, sample) for _, sample in filled], settings.seed)
                text = row.expand(len(filled))
                ends.append(straight_line_ends(sampler, text, eps, settings.steps)[:, : len(batch)])
                bar.update()
            try:
                curves[index] = _curve(sampler, torch.cat(ends, dim=1), settings)
            except ValueError as error:
                errors.append(f"prompt {prompt!r}: {error}")
    if errors:
        raise ValueError(errors[0])
    return curves


def _curve(sampler: Sampler, ends: Tensor, settings: CurveSettings) -> Curve:
    """Return the curve of x_hat_K, [len(steps), R, C, h, w], the last of them x_N."""
    if not ends[-1].isfinite().all():
        raise ValueError("the teacher's samples are not finite; check that its weights are complete")

    def in_space(latents: Tensor) -> Tensor:
        if settings.space == LATENTS:
            return latents
        parts = latents.split(min(settings.batch_size, DECODED))
        return torch.cat([sampler.decoder.decode(part.to(sampler.family.device)).cpu() for part in parts])

    finals = in_space(ends[-1])
    values = [compare_ends(in_space(each), finals) for each in ends[:-1]]
    decidedness, spread = zip(*values, (1.0, 1.0), strict=True)
    return Curve(decidedness, spread)


def mean_decidedness(curves: Sequence[Curve]) -> list[float]:
    """Return the mean over prompts of D(K), for each K."""
    return [fmean(values) for values in zip(*(curve.decidedness for curve in curves), strict=True)]


def smallest_decided(
    steps: Sequence[int], decidedness: Sequence[float], threshold: float, anchor_steps: int | None = None
) -> int:
    """Return the smallest K with D(K) at or above `threshold`; N if there is none before.

    With `anchor_steps`, K is no less: so many steps of the teacher are taken in any case, and reach further.
    """
    found = next((k for k, value in zip(steps, decidedness, strict=True) if value >= threshold), steps[-1])
    return max(found, anchor_steps or 1)


def anchor_calls(schedule: Schedule, sigmas: Tensor, k_anchor: int, anchor_steps: int | None = None) -> int:
    """Return how often the guided teacher is called for one anchor, counted on an anchor of one value."""
    calls = []

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return z

    anchor_target(teacher, schedule, torch.zeros(1, 1, 1, 1), sigmas.cpu(), k_anchor, anchor_steps)
    return len(calls)
