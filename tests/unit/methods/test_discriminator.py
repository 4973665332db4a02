"""The discriminator: what it learns, and which networks its two losses give gradient to."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_distillation import SpyFamily, gradients, make_discriminator, same, weights

from dpdmd.methods import loss_terms, losses, updates
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.discriminator import Discriminator
from dpdmd.methods.networks import Networks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models import lora
from dpdmd.models.lora import Adapter


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_the_discriminator_learns_in_the_fake_score_update_alone(make, batch, features):
    """Its heads get gradient there, and the fake score what it gets without a discriminator, bit for bit."""
    run = make(method="dmd_gan", gan_features=features)
    fake_score_loss(run, batch(0, 1)).loss.backward()
    assert all(gradient is not None and gradient.any() for gradient in gradients(run.discriminator.heads))
    plain = make(method="dmd")
    fake_score_loss(plain, batch(0, 1)).loss.backward()
    ours, theirs = gradients(run.networks.fake), gradients(plain.networks.fake)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(gradient is None for gradient in gradients(run.networks.student) + gradients(run.networks.teacher))
    run.discriminator.heads.zero_grad()
    run.networks.fake.zero_grad()
    student_loss(run, batch(0, 1)).loss.backward()
    assert all(gradient is None for gradient in gradients(run.discriminator.heads) + gradients(run.networks.fake))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_generator_loss_descends_toward_what_the_discriminator_takes_for_real(make, batch, checkpointed):
    """A small step of the sample against the gradient lowers the loss, by the step times the gradient's square.

    Then the discriminator's logit is higher: the sample looks more like a teacher's.
    """
    run, mine = make(method="dmd_gan", gan_weight=1.0), batch(0, 1)
    if checkpointed:
        run.networks.fake.enable_gradient_checkpointing()
    student = updates.roll_out_student(run, mine)
    x = student.x.detach().requires_grad_()

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return loss_terms.adversarial_term(run, replace(student, x=x)).loss

    loss = loss_of(x)
    (gradient,) = torch.autograd.grad(loss, x)
    step = 1e-2 / gradient.norm()
    moved = (x - step * gradient).detach()
    lower = loss_of(moved.clone().requires_grad_())
    with torch.no_grad():
        assert logits_of(run, mine, moved, "student").mean() > logits_of(run, mine, x, "student").mean()
    assert (loss - lower).item() == pytest.approx((step * gradient.square().sum()).item(), rel=0.05)


def logits_of(run: DistillationContext, batch: MicroBatch, x: torch.Tensor, role: str) -> torch.Tensor:
    z_t, sigma = run.discriminator_input(batch, x, role)
    return run.discriminator.heads(run.discriminator.features(run.family, z_t, sigma, batch.text))


def test_both_losses_are_the_logistic_ones_of_their_samples(make, batch):
    """The generator's is weighted; the discriminator takes the teacher's samples for real, the student's for fake."""
    run, mine = make(method="dmd_gan", gan_weight=0.5), batch(0, 1)
    student = updates.roll_out_student(run, mine)
    found = loss_terms.adversarial_term(run, student)
    with torch.no_grad():
        expected = F.softplus(-logits_of(run, mine, student.x, "student")).mean()
    torch.testing.assert_close(found.metrics["loss_gan"], expected)
    torch.testing.assert_close(found.loss.detach(), 0.5 * expected)
    found = fake_score_loss(run, mine)
    with torch.no_grad():
        real = logits_of(run, mine, found.latents["teacher"], "teacher")
        fake = logits_of(run, mine, found.latents["student"], "student")
    torch.testing.assert_close(found.latents["teacher"], run.teacher_samples(mine))
    torch.testing.assert_close(found.metrics["logit_real"], real.mean())
    torch.testing.assert_close(found.metrics["logit_fake"], fake.mean())
    torch.testing.assert_close(found.metrics["loss_discriminator"], F.softplus(-real).mean() + F.softplus(fake).mean())
    assert abs(real.mean() - fake.mean()) > 1e-3  # the roles could be told apart


def test_a_discriminator_learns_to_tell_two_kinds_apart():
    """Tokens that differ by their mean; the loss falls from log 4 to near nothing, and logits take the right signs."""
    heads = Discriminator([6, 6], seed=0)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-2)
    shift = torch.linspace(-1, 1, 6)

    def sample(step: int, sign: float) -> list[torch.Tensor]:
        return [noise(16, 4, 6, seed=10 * step + layer + int(sign > 0) * 5) + 2 * sign * shift for layer in range(2)]

    first = losses.discriminator_loss(heads(sample(0, 1)), heads(sample(0, -1))).item()
    for step in range(60):
        optimizer.zero_grad()
        losses.discriminator_loss(heads(sample(step, 1)), heads(sample(step, -1))).backward()
        optimizer.step()
    assert first == pytest.approx(math.log(4), abs=0.3)
    assert losses.discriminator_loss(heads(sample(99, 1)), heads(sample(99, -1))).item() < 0.1
    assert heads(sample(99, 1)).mean() > 0 > heads(sample(99, -1)).mean()


def test_its_weights_are_drawn_by_seed():
    torch.manual_seed(1)
    one = Discriminator([6], seed=3).state_dict()
    torch.manual_seed(2)
    assert same(one, Discriminator([6], seed=3).state_dict())
    assert not same(one, Discriminator([6], seed=4).state_dict())


def test_on_a_shared_base_the_generator_loss_moves_the_students_adapter_alone(make, batch, trio, embedded):
    """LoRA: features are the fake role's, through the base that the student uses as well."""
    adapter = Adapter(2, 2.0, ("to_q", "to_v"))
    roles = Networks(*lora.share(copy.deepcopy(trio.teacher), adapter, adapter, seed=0))
    for role in (roles.student, roles.fake):
        for index, parameter in enumerate(role.parameters()):
            parameter.data += 0.1 * noise(*parameter.shape, seed=index)
    run = make(networks=roles, method="dmd_gan", gan_weight=1.0)
    before = weights(run.networks.fake)
    student_loss(run, batch(0, 1)).loss.backward()
    assert all(gradient is None for gradient in gradients(roles.fake) + gradients(run.discriminator.heads))
    assert all(gradient is not None for gradient in gradients(roles.student))
    assert same(before, weights(run.networks.fake))
    discriminator = make_discriminator(SpyFamily(), roles.teacher, embedded.null)
    z, sigma = noise(1, 8, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        fake = run.discriminator.features(run.family, z, sigma, embedded.null)
        real = discriminator.features(run.family, z, sigma, embedded.null)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(fake, real, strict=True))
