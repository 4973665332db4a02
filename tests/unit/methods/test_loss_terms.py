"""Each loss term on a small random SD3: its value by a hand-written formula, and the predictions that get gradient."""

import copy
from dataclasses import replace

import pytest
import torch
from small_distillation import SCALE, STEPS, K, gradients, only, squared_distance
from torch import Tensor, nn

from dpdmd.methods import updates
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.base import TextEmbedding
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling.rollout import rollout


def prediction_gradients(run: DistillationContext, batch: MicroBatch) -> list[Tensor | None]:
    """Gradient of the student update's loss on each of the student's predictions, in call order."""
    loss = student_loss(run, batch).loss
    calls = run.family.of(run.networks.student)
    for parameter in run.networks.student.parameters():
        parameter.grad = None
    loss.backward()
    assert len(calls) == STEPS
    return [call.prediction.grad for call in calls]


def test_dmd_term_of_dpdmd_never_reaches_the_first_prediction(make, batch, monkeypatch):
    """Detach after step 1: the DMD gradient on the first prediction is exactly 0, on the others it is not."""
    only(monkeypatch, "dpdmd", "dmd")
    first, *later = prediction_gradients(make(), batch(0, 1))
    assert first is None or not first.any()
    assert all(gradient.abs().max() > 0 for gradient in later)


def test_diversity_term_touches_only_the_first_prediction(make, batch, monkeypatch):
    """The diversity gradient is 2 lambda (v - target) / numel on the first prediction and nothing elsewhere."""
    only(monkeypatch, "dpdmd", "diversity")
    run = make()
    first, *later = prediction_gradients(run, batch(0, 1))
    assert later == [None] * (STEPS - 1)
    eps, prediction = run.start_noise(batch(0, 1)), run.family.of(run.networks.student)[0].prediction.detach()
    target = guided_anchor(run, batch(0, 1), eps)
    expected = 2 * run.config.div_weight * (prediction - target) / prediction.numel()
    # The target divides rounding of 1e-6 (another batch layout of the teacher) by 1 - t_2 = 0.14, then by numel / 0.1.
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_both_terms_together_give_each_prediction_its_own_gradient(make, batch, monkeypatch):
    """The full loss is the sum of both: bit-equal to the diversity gradient on step 1, to the DMD gradient on 2..N."""
    whole = prediction_gradients(make(), batch(0, 1))
    with monkeypatch.context() as patch:
        only(patch, "dpdmd", "diversity")
        diversity = prediction_gradients(make(), batch(0, 1))
    with monkeypatch.context() as patch:
        only(patch, "dpdmd", "dmd")
        dmd = prediction_gradients(make(), batch(0, 1))
    assert torch.equal(whole[0], diversity[0])
    assert all(torch.equal(ours, alone) for ours, alone in zip(whole[1:], dmd[1:], strict=True))


def test_plain_dmd_reaches_the_first_prediction(make, batch):
    """The baseline has no detach: its gradient reaches step 1, which is what collapses diversity."""
    run = make(method="dmd")
    found = prediction_gradients(run, batch(0, 1))
    assert all(gradient.abs().max() > 0 for gradient in found)
    assert len(run.family.of(run.networks.teacher)) == 1  # the real score; no anchor is paid for


def velocity(run: DistillationContext, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
    """One plain call outside the spy."""
    with torch.no_grad():
        return SD35.predict(run.family, network, z, sigma, text)


def guided(run: DistillationContext, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
    """u + s (c - u) of the teacher by two separate calls, u of the empty prompt."""
    u = velocity(run, run.networks.teacher, z, sigma, run.null.expand(len(z)))
    return u + SCALE * (velocity(run, run.networks.teacher, z, sigma, text) - u)


def guided_anchor(run: DistillationContext, batch: MicroBatch, eps: Tensor) -> Tensor:
    """(eps - z_k) / (1 - t_k) by a hand-written loop."""
    z, grid = eps, run.teacher_sigmas
    for index in range(K):
        z = z + (grid[index + 1] - grid[index]) * guided(run, z, grid[index].repeat(len(z)), batch.text)
    return (eps - z) / (1 - grid[K])


def test_real_score_is_guided_and_fake_score_conditional(make, batch):
    """The teacher sees (empty prompt, prompt) rows at the same z_t and time; the fake score the prompt alone.

    The unconditional rows are the encoder's own empty prompt, not zeros (pitfall 8).
    """
    run, mine = make(method="dmd"), batch(0, 1)
    images = student_loss(run, mine).latents
    (real,), (fake,) = run.family.of(run.networks.teacher), run.family.of(run.networks.fake)
    assert torch.equal(real.text.context, torch.cat([run.null.expand(2).context, mine.text.context]))
    assert torch.equal(real.text.pooled, torch.cat([run.null.expand(2).pooled, mine.text.pooled]))
    assert run.null.context.abs().mean() > 0.1 and run.null.pooled.abs().mean() > 0.1
    assert torch.equal(fake.text.context, mine.text.context) and torch.equal(fake.text.pooled, mine.text.pooled)
    assert torch.equal(real.z, torch.cat([fake.z, fake.z])) and torch.equal(real.sigma, fake.sigma.repeat(2))
    z_t, sigma, _ = run.score_input(mine, images["student"])
    assert torch.equal(fake.z, z_t) and torch.equal(fake.sigma, sigma)
    t = sigma.reshape(2, 1, 1, 1)
    # Two calls of 2 rows against one of 4: matrix products round in another order (1e-6), guidance triples that.
    torch.testing.assert_close(images["x0_real"], z_t - t * guided(run, z_t, sigma, mine.text), rtol=0, atol=5e-5)
    assert torch.equal(images["x0_fake"], z_t - t * velocity(run, run.networks.fake, z_t, sigma, mine.text))
    unguided = z_t - t * velocity(run, run.networks.teacher, z_t, sigma, mine.text)
    assert (images["x0_real"] - unguided).abs().max() > 0.05  # the tolerance above tells guidance from none


def test_guidance_of_scale_one_costs_one_branch(make, batch):
    """u + 1 (c - u) = c: half the teacher's work is not spent on nothing."""
    run, mine = make(method="dmd", teacher_guidance_scale=1.0), batch(0, 1)
    images = student_loss(run, mine).latents
    (real,) = run.family.of(run.networks.teacher)
    assert len(real.z) == 2 and torch.equal(real.text.context, mine.text.context)
    t = real.sigma.reshape(2, 1, 1, 1)
    conditional = velocity(run, run.networks.teacher, real.z, real.sigma, mine.text)
    assert torch.equal(images["x0_real"], real.z - t * conditional)


def test_the_real_scores_guidance_is_apart_from_the_anchors(make, batch):
    """u + s (c - u) is linear in s: 6 lies on the line through 3.5 and 1. The anchor's loss stays, bit for bit."""
    results = {scale: student_loss(make(real_guidance_scale=scale), batch(0, 1)) for scale in (None, SCALE, 1.0, 6.0)}
    real = {scale: result.latents["x0_real"] for scale, result in results.items()}
    assert torch.equal(real[None], real[SCALE])  # the anchor's, if the flag is not given
    expected = real[1.0] + (6.0 - 1.0) / (SCALE - 1.0) * (real[SCALE] - real[1.0])
    torch.testing.assert_close(real[6.0], expected, rtol=0, atol=1e-4)
    assert (real[6.0] - real[SCALE]).abs().max() > 0.05
    assert len({result.metrics["loss_div"].item() for result in results.values()}) == 1


@pytest.mark.parametrize(("schedule", "share"), [("decreasing", 0.75), ("increasing", 0.25)])
def test_lambda_follows_its_schedule(make, batch, schedule, share):
    """Update 17 is the third of the student's eight: a quarter of the run is over."""
    run = replace(make(div_weight=0.4, div_weight_schedule=schedule), total_steps=8 * 6)
    metrics = {name: value.item() for name, value in student_loss(run, batch(0, 1, step=17)).metrics.items()}
    assert metrics["loss_student"] == pytest.approx(metrics["loss_dmd"] + 0.4 * share * metrics["loss_div"], rel=1e-6)


@pytest.mark.parametrize("div_weight", [0.05, 0.4])
def test_student_loss_is_dmd_plus_lambda_diversity(make, batch, div_weight):
    """loss = dmd + lambda div, and both terms equal their formulas, from the update's own images and calls."""
    run, mine = make(div_weight=div_weight), batch(0, 1)
    result = student_loss(run, mine)
    metrics = {name: value.item() for name, value in result.metrics.items()}
    assert result.loss.item() == metrics["loss_student"]
    assert metrics["loss_student"] == pytest.approx(metrics["loss_dmd"] + div_weight * metrics["loss_div"], rel=1e-6)
    x, real, fake = (result.latents[name] for name in ("student", "x0_real", "x0_fake"))
    z_t, _, _ = run.score_input(mine, x)
    direction = (fake - real) / (z_t - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert metrics["loss_dmd"] == pytest.approx(0.5 * (direction**2).mean().item(), rel=1e-5)
    assert metrics["dmd_gradient_norm"] == pytest.approx(direction.flatten(1).norm(dim=1).mean().item(), rel=1e-5)
    cosine = torch.cosine_similarity((real - x).flatten(1), (fake - x).flatten(1)).mean().item()
    assert metrics["score_error_cosine"] == pytest.approx(cosine, rel=1e-5)
    first = run.family.of(run.networks.student)[0].prediction.detach()
    distance = (first - guided_anchor(run, mine, run.start_noise(mine))).square().mean().item()
    assert metrics["loss_div"] == pytest.approx(distance, rel=1e-4)  # the anchor in another batch layout, see above


def test_plain_dmd_is_the_dmd_term_alone(make, batch):
    """The baseline's loss is the DMD term of the same roll-out; lambda and K have no say in it."""
    dmd, dpdmd = student_loss(make(method="dmd", div_weight=9.0), batch(0, 1)), student_loss(make(), batch(0, 1))
    assert dmd.loss.item() == dmd.metrics["loss_dmd"].item() == dpdmd.metrics["loss_dmd"].item()
    assert "loss_div" not in dmd.metrics


@pytest.mark.parametrize("normalizer", ["z_t", "x_student"])
def test_the_normaliser_option_reaches_the_loss(make, batch, normalizer):
    """--dmd_normalizer changes the gradient's size, not only the configuration file."""
    run, mine = make(method="dmd", dmd_normalizer=normalizer), batch(0, 1)
    result = student_loss(run, mine)
    x, real, fake = (result.latents[name] for name in ("student", "x0_real", "x0_fake"))
    reference = {"z_t": run.score_input(mine, x)[0], "x_student": x}[normalizer]
    direction = (fake - real) / (reference - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert result.loss.item() == pytest.approx(0.5 * (direction**2).mean().item(), rel=1e-5)


def test_fake_loss_is_flow_matching_on_the_students_samples(make, batch):
    """mse(v_fake(z_t, t), noise - x_theta) at z_t = (1 - t) x_theta + t noise."""
    run, mine = make(), batch(0, 1)
    result = fake_score_loss(run, mine)
    x = run.start_noise(mine)
    for index in range(STEPS):
        sigma = run.student_sigmas[index]
        step = run.student_sigmas[index + 1] - sigma
        x = x + step * velocity(run, run.networks.student, x, sigma.repeat(2), mine.text)
    _, sigma, noise = run.score_input(mine, x)
    t = sigma.reshape(2, 1, 1, 1)
    prediction = velocity(run, run.networks.fake, (1 - t) * x + t * noise, sigma, mine.text)
    assert result.loss.item() == pytest.approx((prediction - (noise - x)).square().mean().item(), rel=1e-5)
    assert result.metrics["loss_fake"].item() == result.loss.item()


def test_perceptual_term_is_the_distance_of_decoded_pairs(make, batch, monkeypatch):
    """Of the teacher's whole grid from the same noise; its gradient is that of the plain graph, decoder included."""
    only(monkeypatch, "dmd_lpips", "perceptual")
    run, mine = make(method="dmd_lpips", perceptual_weight=2.0), batch(0, 1)
    result = student_loss(run, mine)
    result.loss.backward()
    found = gradients(run.networks.student)
    student = updates.roll_out_student(run, mine)
    with torch.no_grad():
        teacher = rollout(run.teacher(mine.text), run.schedule, run.start_noise(mine), run.teacher_sigmas).x
    # One by one, and in another batch layout.
    torch.testing.assert_close(run.teacher_samples(mine), teacher, rtol=1e-4, atol=1e-4)
    decode = run.decoder.decode_with_gradient
    plain = squared_distance(decode(student.x), decode(run.teacher_samples(mine))).mean()
    assert result.metrics["loss_perceptual"].item() == pytest.approx(plain.item(), rel=1e-4)
    run.networks.student.zero_grad()
    (2 * plain).backward()
    largest = max(gradient.abs().max() for gradient in gradients(run.networks.student))
    assert largest > 0
    for ours, theirs in zip(found, gradients(run.networks.student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)
    assert all(parameter.grad is None for parameter in run.decoder.vae.parameters())


def test_a_student_that_is_the_teacher_has_no_perceptual_loss(make, batch, trio):
    """One network, one grid, no guidance: the pair is one image."""
    networks = Networks(copy.deepcopy(trio.teacher), copy.deepcopy(trio.teacher), copy.deepcopy(trio.fake))
    run = make(networks=networks, method="dmd_lpips", teacher_guidance_scale=1.0)
    run = replace(run, student_sigmas=run.teacher_sigmas)
    assert student_loss(run, batch(0)).metrics["loss_perceptual"].item() == 0
