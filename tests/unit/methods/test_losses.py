"""Each loss in closed form: values, the gradient that reaches each argument, and the ones that must get none."""

import math

import pytest
import torch
from torch import nn

from dpdmd.config.options import NORMALIZERS
from dpdmd.methods import losses
from dpdmd.methods.losses import diversity_loss, dmd_loss, fake_score_loss, score_error_cosine

SHAPE = (3, 2, 4, 4)


def _tensors(count: int, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Different fixed latents [3, 2, 4, 4]; sample i has about (1, 2, 4)[i] times unit variance."""
    random = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1)
    return [(scale * torch.randn(SHAPE, generator=random)).to(dtype) for _ in range(count)]


def _direction(real: torch.Tensor, fake: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(x0_fake - x0_real) / mean |reference - x0_real|, sample by sample and by plain sums."""
    rows = [(f - r) / ((ref - r).abs().sum() / r.numel()) for r, f, ref in zip(real, fake, reference, strict=True)]
    return torch.stack(rows)


def test_dmd_gradient_is_exactly_grad_over_numel():
    """d loss / d x = grad / numel, to the last bit where no rounding interferes: dyadic values, weights powers of 2.

    A wrong factor (a lost 0.5, a sum for a mean) or a gradient that leaks through the normaliser shows here.
    """
    x = torch.tensor([0.5, -1.25]).reshape(2, 1, 1, 1).expand(2, 2, 4, 4).clone().requires_grad_()
    real = torch.zeros(2, 2, 4, 4)
    z_t = torch.tensor([0.5, 4.0]).reshape(2, 1, 1, 1).expand(2, 2, 4, 4)  # weights 0.5 and 4
    fake = torch.arange(64).reshape(2, 2, 4, 4) / 8
    dmd = dmd_loss(x, real, fake, z_t)
    dmd.loss.backward()
    expected = torch.cat([fake[:1] / 0.5, fake[1:] / 4])
    assert torch.equal(dmd.gradient, expected)
    assert torch.equal(x.grad, expected / x.numel())
    assert dmd.loss.item() == 0.5 * (expected**2).mean().item()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_dmd_normalisers_by_hand(normalizer):
    """Each sample has its own weight, |z_t - real| or |x - real|; a batch-wide mean would differ threefold."""
    x, real, fake, z_t = _tensors(4)
    x.requires_grad_()
    dmd = dmd_loss(x, real, fake, z_t, normalizer)
    dmd.loss.backward()
    expected = _direction(real, fake, {"z_t": z_t, "x_student": x.detach()}[normalizer])
    # The mean over 32 elements in another order: a few float32 roundings, 6e-8 each.
    torch.testing.assert_close(dmd.gradient, expected, rtol=1e-6, atol=0)
    # x - (x - grad) rounds at the size of x, at most 16: half a step there is 5e-7, before the division by 96.
    torch.testing.assert_close(x.grad * x.numel(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dmd.loss, 0.5 * (expected**2).mean(), rtol=1e-5, atol=0)
    assert not dmd.gradient.requires_grad


def test_dmd_normalisers_differ_from_each_other():
    """The option must change the gradient, and the default is the authors' z_t."""
    arguments = _tensors(4)
    z_t, x_student = (dmd_loss(*arguments, normalizer).gradient for normalizer in ("z_t", "x_student"))
    assert (z_t - x_student).abs().max() > 0.1
    assert torch.equal(dmd_loss(*arguments).gradient, z_t)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_dmd_sign_moves_the_sample_toward_the_teacher(normalizer):
    """With x0_fake = x, a small step down the loss brings x nearer to x0_real, in a straight line.

    An inverted sign looks like blur, not like a blow-up (pitfall 9).
    """
    x, real, z_t = _tensors(3)
    x.requires_grad_()
    dmd_loss(x, real, x.detach(), z_t, normalizer).loss.backward()
    moved = x.detach() - 0.1 * x.numel() * x.grad
    before, after = ((y - real).flatten(1).norm(dim=1) for y in (x.detach(), moved))
    assert (after < before).all()
    cosine = torch.cosine_similarity((moved - x.detach()).flatten(1), (real - x.detach()).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3), rtol=0, atol=1e-5)  # a few roundings of 6e-8 over 32 elements


def test_dmd_gradient_reaches_only_the_student():
    """Teacher, fake score and z_t are constants of this loss: a gradient into the fake score would train it wrongly."""
    x, real, fake, z_t = (tensor.requires_grad_() for tensor in _tensors(4))
    for normalizer in NORMALIZERS:
        dmd_loss(x, real, fake, z_t, normalizer).loss.backward()
    assert x.grad.abs().min() > 0
    assert real.grad is None and fake.grad is None and z_t.grad is None


def test_dmd_zero_normaliser_gives_no_nan():
    """Where x0_real is exactly its reference and the fake agrees, 0 / 0 must be 0; other samples are untouched."""
    x, real, fake, z_t = _tensors(4)
    z_t[1], fake[1] = real[1], real[1]
    x.requires_grad_()
    dmd = dmd_loss(x, real, fake, z_t)
    dmd.loss.backward()
    assert torch.equal(dmd.gradient[1], torch.zeros(SHAPE[1:]))
    assert torch.equal(x.grad[1], torch.zeros(SHAPE[1:]))
    assert torch.isfinite(dmd.loss)
    fake[1] = real[1] + 0.5  # a real direction at weight 0: enormous, but finite, so that clipping can deal with it
    huge = dmd_loss(x, real, fake, z_t)
    assert torch.isfinite(huge.loss) and (huge.gradient[1] > 1e6).all()
    kept = [0, 2]
    torch.testing.assert_close(dmd.gradient[kept], _direction(real, fake, z_t)[kept], rtol=1e-6, atol=0)


def test_dmd_nan_counts_as_zero():
    """A nan of the fake score moves nothing where it is, and spoils no other element (DMD2's rule)."""
    x, real, fake, z_t = _tensors(4)
    expected = _direction(real, fake, z_t)
    fake[0, 1, 2, 3], expected[0, 1, 2, 3] = torch.nan, 0
    x.requires_grad_()
    dmd = dmd_loss(x, real, fake, z_t)
    dmd.loss.backward()
    torch.testing.assert_close(dmd.gradient, expected, rtol=1e-6, atol=0)
    assert x.grad[0, 1, 2, 3] == 0 and torch.isfinite(x.grad).all()


def test_dmd_of_an_infinite_fake_score_is_not_finite():
    """It would be the largest finite number, and a step like any other, if it were not kept."""
    x, real, fake, z_t = _tensors(4)
    fake[0, 1, 2, 3] = -torch.inf
    assert dmd_loss(x, real, fake, z_t).loss == torch.inf


def test_dmd_of_nan_predictions_shows_in_the_cosine():
    """The gradient's nan -> 0 must not hide a broken network: the logged cosine is nan, and the trainer stops on it."""
    x, real, fake, _ = _tensors(4)
    for broken in (torch.nan, torch.inf):
        spoilt = real.clone()
        spoilt[0, 0, 0, 0] = broken
        assert not torch.isfinite(score_error_cosine(x, spoilt, fake))
        assert not torch.isfinite(score_error_cosine(x, fake, spoilt))


def test_dmd_of_bf16_inputs_is_computed_in_fp32():
    """Only the networks run in bf16: the same values in bf16 give bit for bit the fp32 result, and an fp32 loss."""
    low = _tensors(4, dtype=torch.bfloat16)
    high = [tensor.float() for tensor in low]
    for normalizer in NORMALIZERS:
        ours, wanted = dmd_loss(*low, normalizer), dmd_loss(*high, normalizer)
        assert ours.loss.dtype == ours.gradient.dtype == torch.float32
        assert torch.equal(ours.loss, wanted.loss) and torch.equal(ours.gradient, wanted.gradient)
    for loss in (diversity_loss, fake_score_loss):
        assert loss(*low[:2]).dtype == torch.float32
        assert torch.equal(loss(*low[:2]), loss(*high[:2]))
    assert torch.equal(score_error_cosine(*low[:3]), score_error_cosine(*high[:3]))


def test_dmd_unknown_normaliser():
    """A mistyped normaliser must not fall back to another one."""
    with pytest.raises(ValueError, match="z_t, x_student, not 'z_0'"):
        dmd_loss(*_tensors(4), "z_0")


@pytest.mark.parametrize("loss", [diversity_loss, fake_score_loss])
def test_squared_errors_and_their_gradients(loss):
    """mean (p - t)^2 and 2 (p - t) / numel, to the prediction only: the target is a constant.

    A gradient into the target would train the teacher's anchor, or the student through the fake score's loss.
    """
    prediction, target = (tensor.double().requires_grad_() for tensor in _tensors(2))
    value = loss(prediction, target)
    value.backward()
    difference = (prediction - target).detach()
    # Computed in fp32 from float64: roundings of 6e-8 of values up to 16.
    torch.testing.assert_close(value.double(), (difference**2).mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(prediction.grad, 2 * difference / difference.numel(), rtol=1e-5, atol=1e-7)
    assert target.grad is None
    assert loss(prediction, prediction).item() == 0


def test_score_error_cosine():
    """1 where the fake score equals the real one, -1 where it errs the other way, 0 at right angles; a mean."""
    x, real = _tensors(2)
    near_one = {"rtol": 0, "atol": 1e-6}  # fp32 norms and dot products over 32 elements
    torch.testing.assert_close(score_error_cosine(x, real, real), torch.tensor(1.0), **near_one)
    torch.testing.assert_close(score_error_cosine(x, real, 2 * x - real), torch.tensor(-1.0), **near_one)
    # Half of the elements each: the two errors share none.
    x, real, fake = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    real[..., 0], fake[..., 1] = 3, 5
    assert score_error_cosine(x, real, fake).item() == 0
    fake[1] = real[1]  # one sample at right angles, one equal
    torch.testing.assert_close(score_error_cosine(x, real, fake), torch.tensor(0.5), **near_one)
    assert not score_error_cosine(x.requires_grad_(), real, fake).requires_grad


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logistic_losses_and_their_gradients():
    """softplus, its derivative a sigmoid: the generator's pushes logits up, the discriminator's parts them."""
    fake, real = (noise(2, 5, seed=seed).requires_grad_() for seed in (1, 2))
    loss = losses.generator_loss(fake)
    assert loss.item() == pytest.approx(torch.log1p((-fake).exp()).mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, fake)
    torch.testing.assert_close(gradient, -torch.sigmoid(-fake.detach()) / 10)
    both = torch.autograd.grad(losses.discriminator_loss(real, fake), (real, fake))
    torch.testing.assert_close(both[0], -torch.sigmoid(-real.detach()) / 10)
    torch.testing.assert_close(both[1], torch.sigmoid(fake.detach()) / 10)
    nothing = torch.zeros(3, 4)
    assert losses.discriminator_loss(nothing, nothing).item() == pytest.approx(math.log(4))


def test_perceptual_distance_is_one_minus_cosine():
    """Exactly 0 for equal features, 1 for orthogonal, 2 for opposite; the mean over patches and layers."""
    one, other = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 0.5]]])
    features = noise(2, 7, 5)
    assert losses.perceptual_distance([features], [features]).tolist() == [0, 0]
    assert losses.perceptual_distance([one], [other]).item() == 1
    assert losses.perceptual_distance([one, one], [-one, one]).item() == 1  # of 2 and 0
    cosine = torch.cosine_similarity(features, noise(2, 7, 5, seed=1), dim=-1)
    torch.testing.assert_close(losses.perceptual_distance([features], [noise(2, 7, 5, seed=1)]), 1 - cosine.mean(1))


def test_a_precomputed_gradient_is_that_of_the_loss_and_spares_what_it_runs_through():
    x, weight = noise(2, 3).requires_grad_(), nn.Parameter(torch.tensor(2.0))
    plain = (weight * (3 * x) ** 2).sum()
    (expected,) = torch.autograd.grad(plain, x)
    found = losses.with_precomputed_gradient(3 * x, lambda value: (weight * value**2).sum())
    assert found.item() == plain.item()
    found.backward()
    assert torch.equal(x.grad, expected) and weight.grad is None
