"""The losses with SDXL: each is computed once more by hand, in the noise-prediction form of the paper's appendix C.

A network that predicts v, with zero terminal SNR, has the same losses in x0: its v is converted to noise, in float64.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_distillation import make_discriminator, squared_distance
from torch import Tensor, nn

from dpdmd.config import Config
from dpdmd.config.method_table import DISCRIMINATOR, METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods import loss_terms, registry, updates
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks, load_networks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.base import TextEmbedding
from dpdmd.models.discrete_schedule import EpsilonSchedule
from dpdmd.models.sdxl.family import SDXL

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a large square on a white background"]
K, SCALE = 2, 8.0
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module", params=["sdxl", "sdxl_v"])
def folder(request, tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder(request.param)


@pytest.fixture(scope="module")
def trio(folder: Path) -> Networks:
    """Return teacher, student and fake score with weights that differ by 10%; tests work on copies."""
    config = Config()
    config.model.teacher_id = config.model.student_id = config.model.fake_id = str(folder)
    networks, random = load_networks(config, SDXL(CPU, torch.float32)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (networks.student, networks.fake):
            for parameter in network.parameters():
                parameter.add_(0.1 * parameter.square().mean().sqrt() * torch.randn(parameter.shape, generator=random))
    return networks


Make = Callable[..., DistillationContext]


@pytest.fixture
def make(trio: Networks, folder: Path) -> Make:
    def build(**options) -> DistillationContext:
        family, networks = SDXL(CPU, torch.float32), copy.deepcopy(trio)
        values = {"teacher_infer_steps": 6, "k_anchor": K, "teacher_guidance_scale": SCALE, **options}
        config = MethodConfig(student_sigmas="trailing", **values)
        schedule = family.load_schedule(folder)
        null, discriminator = family.load_text_encoder(folder, 10).encode([""]), None
        if DISCRIMINATOR in registry.trained_networks(config):
            discriminator = make_discriminator(family, networks.fake, null, SHAPE)
        return DistillationContext(
            config=config,
            family=family,
            schedule=schedule,
            networks=networks,
            student_forward=networks.student,
            fake_forward=networks.fake,
            null=null,
            latent_shapes=[SHAPE],
            seed=0,
            decoder=family.load_image_decoder(folder),
            perceptual=squared_distance,
            discriminator=discriminator,
            **DistillationContext.grids(config, schedule, CPU),
        )

    return build


@pytest.fixture(scope="module")
def batch(folder: Path) -> MicroBatch:
    text = SDXL(CPU, torch.float32).load_text_encoder(folder, 10).encode(PROMPTS)
    return MicroBatch(text, 5, [0, 1], 5)


def noise_of(run: DistillationContext, network, z: Tensor, sigma: float, text: TextEmbedding) -> Tensor:
    """Return the noise that the network finds in z, float64: its prediction, or (sigma z + v) / c."""
    with torch.no_grad():
        found = run.family.predict(network, z.float(), torch.full((len(z),), sigma), text).double()
    return found if predicts_noise(run) else (sigma * z.double() + found) / (1 + sigma**2) ** 0.5


def predicts_noise(run: DistillationContext) -> bool:
    return isinstance(run.schedule, EpsilonSchedule)


def guided(run: DistillationContext, z: Tensor, sigma: float, text: TextEmbedding) -> Tensor:
    """Return u + s (c - u) of the teacher by two calls, u with zeros in place of text."""
    empty = TextEmbedding(torch.zeros_like(text.context), torch.zeros_like(text.pooled))
    u = noise_of(run, run.networks.teacher, z, sigma, empty)
    return u + SCALE * (noise_of(run, run.networks.teacher, z, sigma, text) - u)


def ddim(z: Tensor, eps: Tensor, sigma_s: float, sigma_t: float) -> Tensor:
    """sqrt(a_t) x0 + sqrt(1 - a_t) eps with x0 = (z - sqrt(1 - a_s) eps) / sqrt(a_s)."""
    a_s, a_t = 1 / (1 + sigma_s**2), 1 / (1 + sigma_t**2)
    return a_t**0.5 * (z.double() - (1 - a_s) ** 0.5 * eps) / a_s**0.5 + (1 - a_t) ** 0.5 * eps


def test_the_tiny_network_depends_on_its_inputs(make, batch):
    """Noise, time, each kind of text and the weights change the output by over 10%, so that the tests can fail."""
    run = make()

    def predict(network: nn.Module, z: Tensor, sigma: float, text: TextEmbedding) -> Tensor:
        with torch.no_grad():
            return run.family.predict(network, z, torch.full((len(z),), sigma), text)

    z, text, teacher = run.start_noise(batch), batch.text, run.networks.teacher
    reference = predict(teacher, z, 3.0, text)
    others = {
        "noise": predict(teacher, z.flip(0), 3.0, text),
        "time": predict(teacher, z, 0.5, text),
        "context": predict(teacher, z, 3.0, replace(text, context=text.context.flip(0))),
        "pooled": predict(teacher, z, 3.0, replace(text, pooled=text.pooled.flip(0))),
        "empty": predict(teacher, z, 3.0, run.null.expand(2)),
        "student": predict(run.networks.student, z, 3.0, text),
        "fake": predict(run.networks.fake, z, 3.0, text),
    }
    for name, value in others.items():
        assert (value - reference).std() > 0.1 * reference.std(), name


@pytest.mark.parametrize("k_anchor", [K, 6])
def test_diversity_loss_is_in_x0_space(make, batch, k_anchor):
    """The loss is the mse of the student's x0 at its first time to the teacher's at the anchor, in a plain loop."""
    run = make(k_anchor=k_anchor)
    eps = z = run.start_noise(batch)
    grid, first = run.teacher_sigmas.tolist(), run.student_sigmas[0].item()
    for sigma_s, sigma_t in pairwise(grid[: k_anchor + 1]):
        z = ddim(z, guided(run, z, sigma_s, batch.text), sigma_s, sigma_t)
    target = z if k_anchor == 6 else ddim(z, guided(run, z, grid[k_anchor], batch.text), grid[k_anchor], 0)
    ours = ddim(eps, noise_of(run, run.networks.student, eps, first, batch.text), first, 0)
    found = student_loss(run, batch).metrics["loss_div"].item()
    assert found == pytest.approx((ours - target).square().mean().item(), rel=1e-4)
    assert found > 0.1


def test_fake_loss_is_noise_prediction_on_the_students_samples(make, batch):
    """mse(eps_fake(z_t, t), noise) at z_t = sqrt(a) x_theta + sqrt(1 - a) noise; v's target is a mixture of both."""
    run = make()
    x, grid = run.start_noise(batch), run.student_sigmas.tolist()
    for sigma_s, sigma_t in pairwise(grid):
        x = ddim(x, noise_of(run, run.networks.student, x, sigma_s, batch.text), sigma_s, sigma_t)
    _, sigma, noise = run.score_input(batch, x)
    a = (1 / (1 + sigma**2)).reshape(2, 1, 1, 1)
    with torch.no_grad():
        z_t = (a.sqrt() * x + (1 - a).sqrt() * noise).float()
        prediction = run.family.predict(run.networks.fake, z_t, sigma, batch.text)
    target = noise if predicts_noise(run) else a.sqrt() * noise - (1 - a).sqrt() * x
    found = fake_score_loss(run, batch).loss.item()
    assert found == pytest.approx((prediction - target).square().mean().item(), rel=1e-4)


def test_dmd_loss_compares_the_x0_of_guided_teacher_and_fake_score(make, batch):
    run = make(method="dmd")
    result = student_loss(run, batch)
    x = result.latents["student"]
    z_t, sigma, _ = run.score_input(batch, x)
    for i in range(2):
        one, s = replace(batch.text, context=batch.text.context[[i]], pooled=batch.text.pooled[[i]]), sigma[i].item()
        real = ddim(z_t[[i]], guided(run, z_t[[i]], s, one), s, 0)
        fake = ddim(z_t[[i]], noise_of(run, run.networks.fake, z_t[[i]], s, one), s, 0)
        torch.testing.assert_close(result.latents["x0_real"][[i]].double(), real, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result.latents["x0_fake"][[i]].double(), fake, rtol=1e-3, atol=1e-3)
    direction = result.latents["x0_fake"] - result.latents["x0_real"]
    direction /= (z_t - result.latents["x0_real"]).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert result.loss.item() == pytest.approx(0.5 * direction.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_dmd_term_stops_where_the_method_detaches(make, batch, method):
    """Every weight of the student gets a gradient, other networks none; the first prediction depends on the method."""
    run = make(method=method)
    student = updates.roll_out_student(run, batch)
    loss = loss_terms.dmd_term(run, student).loss
    (first,) = torch.autograd.grad(loss, student.first_prediction, allow_unused=True, retain_graph=True)
    assert (first is not None and first.abs().max() > 0) != METHODS[method].detach_first_step
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.networks.student.parameters())
    assert all(p.grad is None for n in (run.networks.teacher, run.networks.fake) for p in n.parameters())


def test_losses_are_finite_where_there_is_noise_alone(make, batch, monkeypatch):
    """At time 999 of zero terminal SNR sigma is 4096: x0 of teacher and fake score, and the losses, stay of order 1."""
    run = make(method="dmd")
    run = replace(run, score_sigmas=run.score_sigmas[:1].expand(1000))
    student, fake = student_loss(run, batch), fake_score_loss(run, batch)
    assert student.loss.isfinite() and fake.loss.isfinite()
    if not predicts_noise(run):
        assert run.score_sigmas[0] > 4000 and student.latents["x0_real"].abs().max() < 100 and fake.loss < 100
