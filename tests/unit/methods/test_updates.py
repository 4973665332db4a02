"""The two turns of each method on a small random SD3: what is computed, what gets gradient, what must not change."""

import copy
from dataclasses import replace

import pytest
import torch
from small_distillation import CPU, SCALE, STEPS, UNUSED, K, SpyFamily, gradients, perturb, same, weights
from torch import Tensor, nn

from dpdmd.config import Config
from dpdmd.config.methods import METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks, load_networks, recompute_blocks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.base import TextEmbedding
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sd35.family import SD35

FLOW = FlowSchedule(shift=3.0)


def only(monkeypatch: pytest.MonkeyPatch, name: str, *terms: str) -> None:
    """Reduce a method to some of its terms; the roll-out stays as the method has it."""
    assert set(terms) <= set(METHODS[name].student_terms)
    monkeypatch.setitem(METHODS, name, replace(METHODS[name], student_terms=terms))


def prediction_gradients(run: DistillationContext, batch: MicroBatch) -> list[Tensor | None]:
    """Gradient of the student turn's loss on each of the student's predictions, in call order."""
    loss = student_loss(run, batch).loss
    calls = run.family.of(run.networks.student)
    for parameter in run.networks.student.parameters():
        parameter.grad = None
    loss.backward()
    assert len(calls) == STEPS
    return [call.prediction.grad for call in calls]


# What the tests stand on


def test_the_tiny_networks_can_tell_differences(make, batch):
    """Noise, time, text and weights each move the output by over a tenth of it; else the tests below prove little."""
    run = make()
    z, sigma, text = run.start_noise(batch(0)), torch.tensor([0.5]), batch(0).text
    with torch.no_grad():
        reference = run.family.predict(run.networks.teacher, z, sigma, text)
        changed = {
            "noise": run.family.predict(run.networks.teacher, run.start_noise(batch(1)), sigma, text),
            "time": run.family.predict(run.networks.teacher, z, torch.tensor([0.8]), text),
            "prompt": run.family.predict(run.networks.teacher, z, sigma, batch(1).text),
            "empty prompt": run.family.predict(run.networks.teacher, z, sigma, run.null),
            "pooled text": run.family.predict(run.networks.teacher, z, sigma, replace(text, pooled=text.pooled + 1)),
            "student": run.family.predict(run.networks.student, z, sigma, text),
            "fake": run.family.predict(run.networks.fake, z, sigma, text),
        }
    for name, value in changed.items():
        assert (value - reference).std() > 0.1 * reference.std(), name


# Where gradient flows


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


@pytest.mark.parametrize("method", METHODS)
def test_each_turn_gives_gradient_to_its_own_network_only(make, batch, method):
    """A fake turn must not train the student, nor a student turn the fake score or the teacher."""
    run = make(method=method)
    fake_score_loss(run, batch(0, 1)).loss.backward()
    assert all(gradient is None for gradient in gradients(run.networks.student) + gradients(run.networks.teacher))
    assert sum(gradient.abs().sum() for gradient in gradients(run.networks.fake)) > 0
    run.networks.fake.zero_grad()
    student_loss(run, batch(0, 1)).loss.backward()
    assert all(gradient is None for gradient in gradients(run.networks.fake) + gradients(run.networks.teacher))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(run.networks.student))
    assert sum(gradient.abs().sum() for gradient in gradients(run.networks.student)) > 0


@pytest.mark.parametrize("method", METHODS)
def test_teacher_keeps_its_bytes(make, batch, method):
    """Several updates of both networks move both, and neither the teacher nor the empty prompt's embedding."""
    run = make(method=method)
    before = {name: weights(getattr(run.networks, name)) for name in ("teacher", "student", "fake")}
    null = run.null.context.clone(), run.null.pooled.clone()
    optimizers = {
        turn: torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
        for turn, network in ((fake_score_loss, run.networks.fake), (student_loss, run.networks.student))
    }
    for step, turn in enumerate((fake_score_loss, fake_score_loss, student_loss) * 2):
        turn(run, batch(0, 1, step=step)).loss.backward()
        optimizers[turn].step()
        optimizers[turn].zero_grad()
    assert same(before["teacher"], weights(run.networks.teacher))
    assert torch.equal(null[0], run.null.context) and torch.equal(null[1], run.null.pooled)
    for name in ("student", "fake"):
        for key, parameter in getattr(run.networks, name).named_parameters():
            assert torch.equal(before[name][key], parameter.detach()) == key.startswith(UNUSED), key


# What is computed


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
    images = student_loss(run, mine).images
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
    images = student_loss(run, mine).images
    (real,) = run.family.of(run.networks.teacher)
    assert len(real.z) == 2 and torch.equal(real.text.context, mine.text.context)
    t = real.sigma.reshape(2, 1, 1, 1)
    conditional = velocity(run, run.networks.teacher, real.z, real.sigma, mine.text)
    assert torch.equal(images["x0_real"], real.z - t * conditional)


def test_network_calls_of_a_turn(make, batch):
    """N student calls on its grid from eps, K guided teacher calls from the same eps on the teacher's own grid."""
    run, mine = make(), batch(0, 1)
    student_loss(run, mine)
    student, teacher = run.family.of(run.networks.student), run.family.of(run.networks.teacher)
    assert [call.sigma.tolist() for call in student] == [[sigma] * 2 for sigma in run.student_sigmas[:-1].tolist()]
    assert len(teacher) == 1 + K and len(run.family.of(run.networks.fake)) == 1
    anchor = teacher[1:]
    assert [call.sigma.tolist() for call in anchor] == [[sigma] * 4 for sigma in run.teacher_sigmas[:K].tolist()]
    eps = run.start_noise(mine)
    assert torch.equal(student[0].z, eps) and torch.equal(anchor[0].z, torch.cat([eps, eps]))
    assert all(len(call.z) == 4 for call in teacher)  # guided: both branches
    # Scored without gradient: a graph through the teacher would be thrown away, after filling the memory.
    assert not any(call.prediction.requires_grad for call in teacher + run.family.of(run.networks.fake))
    run.family.calls.clear()
    fake_score_loss(run, mine)
    assert len(run.family.of(run.networks.student)) == STEPS
    assert len(run.family.of(run.networks.fake)) == 1 and not run.family.of(run.networks.teacher)


@pytest.mark.parametrize("div_weight", [0.05, 0.4])
def test_student_loss_is_dmd_plus_lambda_diversity(make, batch, div_weight):
    """loss = dmd + lambda div, and both terms equal their formulas, from the turn's own images and calls."""
    run, mine = make(div_weight=div_weight), batch(0, 1)
    result = student_loss(run, mine)
    metrics = {name: value.item() for name, value in result.metrics.items()}
    assert result.loss.item() == metrics["loss_student"]
    assert metrics["loss_student"] == pytest.approx(metrics["loss_dmd"] + div_weight * metrics["loss_div"], rel=1e-6)
    x, real, fake = (result.images[name] for name in ("student", "x0_real", "x0_fake"))
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
    x, real, fake = (result.images[name] for name in ("student", "x0_real", "x0_fake"))
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


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_both_turns_roll_out_the_same_samples(make, batch, compute_dtype):
    """Without gradient (fake turn) and with it (student turn) the student predicts the same bits (pitfall 17)."""
    run = make(SpyFamily(compute_dtype))
    fake_score_loss(run, batch(0, 1))
    without = [call.prediction for call in run.family.of(run.networks.student)]
    run.family.calls.clear()
    student_loss(run, batch(0, 1))
    having = [call.prediction for call in run.family.of(run.networks.student)]
    assert not any(prediction.requires_grad for prediction in without) and having[0].requires_grad
    assert [torch.equal(left, right) for left, right in zip(without, having, strict=True)] == [True] * STEPS


def test_calls_with_gradient_go_through_the_trainers_wrappers(make, batch):
    """A wrapped network averages gradients over processes only if the wrapper is called: each turn must call its own.

    Without gradient the bare network is called: a wrapper there would wait for processes that never come.
    """

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            return self.inner(**inputs)

    bare = make()
    run = replace(bare, student_forward=Wrapper(bare.networks.student), fake_forward=Wrapper(bare.networks.fake))
    student_loss(run, batch(0))
    assert len(run.family.of(run.student_forward)) == STEPS and not run.family.of(run.networks.student)
    assert len(run.family.of(run.networks.fake)) == 1 and not run.family.of(run.fake_forward)
    run.family.calls.clear()
    fake_score_loss(run, batch(0))
    assert len(run.family.of(run.fake_forward)) == 1 and not run.family.of(run.networks.fake)
    assert len(run.family.of(run.networks.student)) == STEPS and not run.family.of(run.student_forward)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_times_and_predictions_are_fp32_in_any_compute_type(make, batch, compute_dtype):
    """The network is told 1000 sigma in fp32, answers in fp32, and computes inside in the type asked for.

    bf16 times would merge 1000 of them into 351 (pitfall 5); bf16 predictions would round every latent.
    """
    run, seen = make(SpyFamily(compute_dtype)), []
    sigma = run.score_sigmas[[700, 701]]
    student = run.networks.student
    student.register_forward_pre_hook(lambda *arguments: seen.append(arguments[2]["timestep"]), with_kwargs=True)
    student.transformer_blocks[0].ff.net[2].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    prediction = run.family.predict(student, run.start_noise(batch(0, 1)), sigma, batch(0, 1).text)
    times, inside = seen
    assert times.dtype == torch.float32 and torch.equal(times, sigma * 1000)
    assert inside.dtype == compute_dtype
    assert prediction.dtype == torch.float32


def test_each_role_has_its_own_grid():
    """Student on its named grid, teacher on its 30 steps, score on 1000 times without the final 0; all in fp32."""
    grids = DistillationContext.grids(MethodConfig(student_sigmas="trailing"), FLOW, CPU)
    assert torch.equal(grids["student_sigmas"], FLOW.trailing_sigmas(4))
    assert torch.equal(grids["teacher_sigmas"], FLOW.default_sigmas(30))
    assert torch.equal(grids["score_sigmas"], FLOW.default_sigmas(1000)[:1000])
    assert torch.equal(DistillationContext.grids(MethodConfig(), FLOW, CPU)["student_sigmas"], FLOW.default_sigmas(4))
    with pytest.raises(ValueError, match="3 sigmas, but the student takes 4"):
        DistillationContext.grids(MethodConfig(student_sigmas="1,0.9,0.5"), FLOW, CPU)


# Random draws and batches


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


@pytest.mark.parametrize("turn", [student_loss, fake_score_loss])
def test_accumulation_gives_the_whole_batchs_gradient(make, batch, turn):
    """2 micro-batches of 1, losses halved, add up to the gradient of a batch of 2 (pitfall 12)."""
    found = []
    for split in ([(0, 1)], [(0,), (1,)]):
        run = make()
        for samples in split:
            (turn(run, batch(*samples)).loss / len(split)).backward()
        trained = run.networks.student if turn is student_loss else run.networks.fake
        found.append(torch.cat([gradient.flatten() for gradient in gradients(trained)]))
    # The same sums in another order: predictions differ by about 1e-6, and guidance, the division by 1 - t_k = 0.14
    # and the normaliser enlarge that by some ten times. A doubled, halved or lost micro-batch differs by its own size.
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()
    assert found[0].norm() > 0


# Precision and memory


def adam_updates(run: DistillationContext, batch: MicroBatch, count: int, lr: float) -> dict[str, Tensor]:
    """Change of each of the student's weights after `count` AdamW updates on one and the same batch."""
    before = weights(run.networks.student)
    optimizer = torch.optim.AdamW(run.networks.student.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(count):
        student_loss(run, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.double() - before[name].double() for name, value in weights(run.networks.student).items()}


def test_fp32_master_weights_keep_updates_that_bf16_loses(tiny_pipeline, make, batch):
    """At lr 1e-5, ten AdamW updates in one direction move fp32 weights by about 1e-4; bf16 weights stand still.

    Half a bf16 step of a weight above 0.0157 is at least 3e-5, more than one update, so each is rounded away
    (pitfall 16); a student loaded in the compute type would train nothing and tell nobody.
    """
    family, config = SpyFamily(torch.bfloat16), Config()
    config.model.teacher_id = config.model.fake_id = str(tiny_pipeline)
    loaded = load_networks(config, family, tiny_pipeline)
    for network, wanted in (
        (loaded.teacher, torch.bfloat16),
        (loaded.student, torch.float32),
        (loaded.fake, torch.float32),
    ):
        assert {parameter.dtype for parameter in network.parameters()} == {wanted}
    perturb(loaded.student, 1)
    perturb(loaded.fake, 2)
    rounded = Networks(loaded.teacher, copy.deepcopy(loaded.student).bfloat16(), loaded.fake)
    options = {"stu_inference_steps": 2, "k_anchor": 1}
    used = {
        name: value.detach().abs() > 0.0157
        for name, value in loaded.student.named_parameters()
        if not name.startswith(UNUSED)
    }
    moved = adam_updates(make(family, loaded, **options), batch(0), 10, 1e-5)
    lost = adam_updates(make(family, rounded, **options), batch(0), 10, 1e-5)
    ours, theirs = (torch.cat([change[name][large].abs() for name, large in used.items()]) for change in (moved, lost))
    assert len(ours) > 50_000
    # Adam's step is lr times about 1 while the gradient keeps its sign; where it turns during the ten, the sum is less.
    assert 0.9e-4 < ours.mean() < 1.05e-4
    assert (ours > 0).all()
    assert (theirs == 0).all()


@pytest.mark.parametrize("turn", [student_loss, fake_score_loss])
def test_gradient_checkpointing_recomputes_once_and_changes_nothing(make, batch, turn):
    """Gradients are bit-equal, and a recomputed block runs twice per call with gradient, not three times."""
    found, counts = [], []
    for recomputed in ("0", "1", "all"):
        run = make()
        trained = run.networks.student if turn is student_loss else run.networks.fake
        recompute_blocks(trained, run.family, recomputed)
        # Before the forward: the recomputation ends as soon as it has what the backward pass needs.
        forwards: list[int] = []
        for index, block in enumerate(trained.transformer_blocks):
            block.register_forward_pre_hook(lambda *_, forwards=forwards, index=index: forwards.append(index))
        turn(run, batch(0, 1)).loss.backward()
        found.append(gradients(trained))
        counts.append([forwards.count(index) for index in range(len(trained.transformer_blocks))])
    calls = STEPS if turn is student_loss else 1
    others = len(counts[0]) - 1
    assert counts == [[calls] * (1 + others), [2 * calls, *[calls] * others], [2 * calls] * (1 + others)]
    assert all(torch.equal(plain, one) and torch.equal(plain, every) for plain, one, every in zip(*found, strict=True))
