"""The terms of the compared methods and the routes of the roll-out: closed forms, what gets gradient, what moves."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_distillation import CPU, STEPS, SpyFamily, gradients, make_discriminator, same, squared_distance, weights
from torch import nn

from dpdmd.config.methods import METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods import loss_terms, losses, registry, updates
from dpdmd.methods.discriminator import Discriminator
from dpdmd.methods.networks import Networks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models import lora
from dpdmd.models.lora_config import Adapter
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.sampling.rollout import rollout

SIGMAS = FlowSchedule(3.0).trailing_sigmas(4)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Losses in closed form


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


def test_with_gradient_of_is_the_loss_and_spares_what_it_runs_through():
    x, weight = noise(2, 3).requires_grad_(), nn.Parameter(torch.tensor(2.0))
    plain = (weight * (3 * x) ** 2).sum()
    (expected,) = torch.autograd.grad(plain, x)
    found = losses.with_precomputed_gradient(3 * x, lambda value: (weight * value**2).sum())
    assert found.item() == plain.item()
    found.backward()
    assert torch.equal(x.grad, expected) and weight.grad is None


# Routes of the roll-out


class Linear(nn.Module):
    """v = a z, with an `a` of its own in each step, so that each step's gradient can be told."""

    def __init__(self):
        super().__init__()
        self.rates = nn.ParameterList(nn.Parameter(torch.tensor(rate, dtype=torch.float64)) for rate in (1, 2, 3, 4.0))
        self.calls = 0

    def forward(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.rates[self.calls - 1] * z


def linear_gradients(**options) -> list[float | None]:
    network, z = Linear(), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    rollout(network, FlowSchedule(3.0), z, SIGMAS.double(), **options).x.sum().backward()
    return [rate.grad.item() if rate.grad is not None else None for rate in network.rates]


def test_kept_steps_have_the_closed_form_gradient():
    """x = prod (1 + d_i a_i); a kept step alone is d_k z_k, since the others' predictions are constants."""
    d, a = SIGMAS.double().diff().tolist(), (1.0, 2.0, 3.0, 4.0)
    factors = [1 + step * rate for step, rate in zip(d, a, strict=True)]
    z = [math.prod(factors[:index]) for index in range(4)]
    after = [math.prod(factors[index + 1 :]) for index in range(4)]
    assert linear_gradients() == pytest.approx([d[i] * z[i] * after[i] for i in range(4)])
    for kept in range(4):
        expected = [None] * 4
        expected[kept] = pytest.approx(d[kept] * z[kept])
        assert linear_gradients(gradient_steps={kept}) == expected
    assert linear_gradients(detach_first_step=True)[0] is None
    # x0 = (1 - sigma_k a_k) z_k in one jump
    sigma = SIGMAS.double().tolist()
    assert linear_gradients(jump_at=2) == [None, None, pytest.approx(-sigma[2] * z[2]), None]


def test_a_jump_from_the_last_step_is_the_whole_roll_out():
    network, z = Linear(), noise(1, 1, 2, 2).double()
    whole = rollout(network, FlowSchedule(3.0), z, SIGMAS.double())
    network.calls = 0
    torch.testing.assert_close(rollout(network, FlowSchedule(3.0), z, SIGMAS.double(), jump_at=3).x, whole.x)


def steps_with_gradient(run, batch) -> list[bool]:
    """Of the student's predictions in one student turn, in call order."""
    student_loss(run, batch).loss.backward()
    return [
        call.prediction.grad is not None and bool(call.prediction.grad.any())
        for call in run.family.of(run.networks.student)
    ]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"method": "dmd"}, [True] * 4),
        ({"method": "dmd", "detach_first_step": True}, [False, True, True, True]),
        ({"method": "dmd", "grad_steps": "last"}, [False, False, False, True]),
        ({"method": "dpdmd", "grad_steps": "last"}, [True, False, False, True]),  # the first: diversity
        ({"method": "dpdmd", "detach_first_step": False}, [True] * 4),
    ],
)
def test_switches_decide_which_predictions_get_gradient(make, batch, options, wanted):
    assert steps_with_gradient(make(**options), batch(0, 1)) == wanted


def test_without_the_detach_dmd_reaches_the_first_prediction_of_dpdmd(make, batch, monkeypatch):
    """Figure 5: the same method, the detach alone left out."""
    alone = replace(METHODS["dpdmd"], student_terms=("dmd",))
    monkeypatch.setitem(METHODS, "dpdmd", alone)
    assert steps_with_gradient(make(), batch(0, 1))[0] is False
    assert steps_with_gradient(make(detach_first_step=False), batch(0, 1))[0] is True


def test_a_first_step_kept_for_the_diversity_loss_is_out_of_dmds_reach(make, batch, monkeypatch):
    """Without the detach the last step alone still means the last: the first prediction's gradient is diversity's."""
    options = {"detach_first_step": False, "grad_steps": "last"}
    whole = make(**options)
    student_loss(whole, batch(0, 1)).loss.backward()
    alone = replace(METHODS["dpdmd"], student_terms=("diversity",))
    monkeypatch.setitem(METHODS, "dpdmd", alone)
    run = make(**options)
    student_loss(run, batch(0, 1)).loss.backward()
    first, expected = (each.family.of(each.networks.student)[0].prediction.grad for each in (whole, run))
    assert expected.any() and torch.equal(first, expected)


def test_random_steps_are_drawn_by_step_alone_and_cover_what_may_be_reached():
    for method, reached in (("dmd", {0, 1, 2, 3}), ("dpdmd", {1, 2, 3})):
        config = MethodConfig(method=method, grad_steps="random")
        first = {0} if method == "dpdmd" else set()
        drawn = [updates.rollout_options(config, 0, step).gradient_steps for step in range(60)]
        assert drawn == [updates.rollout_options(config, 0, step).gradient_steps for step in range(60)]
        assert set().union(*(steps - first for steps in drawn)) | (reached & first) == reached
        assert all(len(steps - first) == 1 for steps in drawn)
        jumps = {
            updates.rollout_options(MethodConfig(method=method, rollout="dmd2"), 0, step).jump_at for step in range(60)
        }
        assert jumps == reached


@pytest.mark.parametrize("method", ["dmd", "dpdmd"])
def test_dmd2s_roll_out_has_gradient_in_its_jump_alone(make, batch, method):
    """Both turns jump from the same step; dpdmd's first prediction belongs to the diversity loss, and never jumps."""
    seen = set()
    for step in range(8):
        run = make(method=method, rollout="dmd2")
        jump = updates.rollout_options(run.config, run.seed, step).jump_at
        wanted = [index == jump or (method == "dpdmd" and index == 0) for index in range(jump + 1)]
        assert steps_with_gradient(run, batch(0, step=step)) == wanted
        x = updates.roll_out_student(run, batch(0, step=step)).x
        torch.testing.assert_close(updates.student_samples(run, batch(0, step=step)), x.detach(), rtol=0, atol=0)
        seen.add(jump)
    assert len(seen) > 1


# Perceptual


def test_perceptual_term_is_the_distance_of_decoded_pairs(make, batch, monkeypatch):
    """Of the teacher's whole grid from the same noise; its gradient is that of the plain graph, decoder included."""
    monkeypatch.setitem(METHODS, "dmd_lpips", replace(METHODS["dmd_lpips"], student_terms=("perceptual",)))
    run, mine = make(method="dmd_lpips", perceptual_weight=2.0), batch(0, 1)
    result = student_loss(run, mine)
    result.loss.backward()
    found = gradients(run.networks.student)
    turn = updates.roll_out_student(run, mine)
    with torch.no_grad():
        teacher = rollout(run.teacher(mine.text), run.schedule, run.start_noise(mine), run.teacher_sigmas).x
    # One by one, and in another batch layout.
    torch.testing.assert_close(run.teacher_samples(mine), teacher, rtol=1e-4, atol=1e-4)
    decode = run.decoder.decode_with_gradient
    plain = squared_distance(decode(turn.x), decode(run.teacher_samples(mine))).mean()
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


# Discriminator


@pytest.mark.parametrize("features", ["fake", "teacher"])
def test_the_discriminator_learns_in_the_fake_turn_alone(make, batch, features):
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
    """A small step of the sample against the gradient lowers the loss, by the step times the gradient's square."""
    run, mine = make(method="dmd_gan", gan_weight=1.0), batch(0, 1)
    if checkpointed:
        run.networks.fake.enable_gradient_checkpointing()
    turn = updates.roll_out_student(run, mine)
    x = turn.x.detach().requires_grad_()

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return loss_terms.adversarial_term(run, replace(turn, x=x)).loss

    loss = loss_of(x)
    (gradient,) = torch.autograd.grad(loss, x)
    step = 1e-2 / gradient.norm()
    lower = loss_of((x - step * gradient).detach().requires_grad_())
    assert (loss - lower).item() == pytest.approx((step * gradient.square().sum()).item(), rel=0.05)


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


def test_both_sides_share_the_time_and_not_the_noise(make, batch):
    run, x = make(method="dmd_gan"), torch.zeros(2, 8, 8, 8)
    student, teacher = (run.discriminator_input(batch(0, 1), x, role) for role in ("student", "teacher"))
    assert torch.equal(student[1], teacher[1]) and not torch.equal(student[0], teacher[0])
    assert not torch.equal(student[1], run.score_input(batch(0, 1), x)[1])


def test_on_a_shared_base_the_generator_loss_moves_the_students_adapter_alone(make, batch, trio, embedded):
    """LoRA: features are the fake role's, through the base that the student plays on as well."""
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


# Teacher samples


def test_a_pools_noise_is_the_entrys_in_every_step(make, batch):
    run = make(method="dmd_lpips", teacher_cache_size=9)
    one, other = (replace(batch(0, 1, step=step), pool_indices=(7, 2)) for step in (5, 11))
    assert torch.equal(run.start_noise(one), run.start_noise(other))
    assert not torch.equal(run.start_noise(one), run.start_noise(replace(one, pool_indices=(2, 7))))
    assert not torch.equal(run.start_noise(one), run.start_noise(replace(batch(0, 1), samples=(7, 2))))


def test_only_the_paired_turn_works_on_the_pool():
    def turns(method: str, size: int | None) -> list[bool]:
        config = MethodConfig(method=method, teacher_cache_size=size, per_train_fake_num=2)
        return [registry.uses_sample_pool(step, config) for step in range(3)]

    assert turns("dmd_lpips", 8) == [False, False, True]
    assert turns("dmd_gan", 8) == [True, True, False]
    assert turns("dmd_gan", None) == [False] * 3


def test_a_teacher_sample_does_not_depend_on_the_batch(make, batch):
    """Alone, among others, and in another place: the same bits, or a stored sample would not be the one made anew."""
    run = make(method="dmd_lpips")
    both = run.teacher_samples(batch(0, 1))
    assert torch.equal(both[1:], run.teacher_samples(batch(1)))
    assert torch.equal(both.flip(0), run.teacher_samples(batch(1, 0)))
    assert len(both) == 2 and both.device == CPU and len(run.teacher_sigmas) > STEPS
