"""The two updates of each method on a small random SD3: what is computed, what gets gradient, what must not change."""

import math
from dataclasses import replace

import pytest
import torch
from small_distillation import CPU, STEPS, UNUSED, K, SpyFamily, gradients, only, same, weights
from torch import nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import MethodConfig
from dpdmd.methods import updates
from dpdmd.methods.context import DistillationContext
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.even_flow_schedule import EvenFlowSchedule


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


@pytest.mark.parametrize("method", METHODS)
def test_each_update_gives_gradient_to_its_own_network_only(make, batch, method):
    """A fake-score update must not train the student, nor a student update the fake score or the teacher."""
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
        update: torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
        for update, network in ((fake_score_loss, run.networks.fake), (student_loss, run.networks.student))
    }
    for step, update in enumerate((fake_score_loss, fake_score_loss, student_loss) * 2):
        update(run, batch(0, 1, step=step)).loss.backward()
        optimizers[update].step()
        optimizers[update].zero_grad()
    assert same(before["teacher"], weights(run.networks.teacher))
    assert torch.equal(null[0], run.null.context) and torch.equal(null[1], run.null.pooled)
    for name in ("student", "fake"):
        for key, parameter in getattr(run.networks, name).named_parameters():
            assert torch.equal(before[name][key], parameter.detach()) == key.startswith(UNUSED), key


def steps_with_gradient(run, batch) -> list[bool]:
    """Of the student's predictions in one student update, in call order."""
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
    only(monkeypatch, "dpdmd", "dmd")
    assert steps_with_gradient(make(), batch(0, 1))[0] is False
    assert steps_with_gradient(make(detach_first_step=False), batch(0, 1))[0] is True


def test_a_first_step_kept_for_the_diversity_loss_is_out_of_dmds_reach(make, batch, monkeypatch):
    """Without the detach the last step alone still means the last: the first prediction's gradient is diversity's."""
    options = {"detach_first_step": False, "grad_steps": "last"}
    whole = make(**options)
    student_loss(whole, batch(0, 1)).loss.backward()
    only(monkeypatch, "dpdmd", "diversity")
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
    """Both updates jump from the same step; dpdmd's first prediction belongs to the diversity loss, and never jumps."""
    seen, run = set(), make(method=method, rollout="dmd2")
    for step in range(8):
        run.family.calls.clear()
        jump = updates.rollout_options(run.config, run.seed, step).jump_at
        wanted = [index == jump or (method == "dpdmd" and index == 0) for index in range(jump + 1)]
        assert steps_with_gradient(run, batch(0, step=step)) == wanted
        x = updates.roll_out_student(run, batch(0, step=step)).x
        torch.testing.assert_close(updates.student_samples(run, batch(0, step=step)), x.detach(), rtol=0, atol=0)
        seen.add(jump)
    assert len(seen) > 1


def test_network_calls_of_an_update(make, batch):
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


def test_each_image_size_has_its_own_grids(make, batch):
    """Student, anchor, scores, shared samples and teacher samples take the grids of the batch's size."""
    run, sizes = make(fake_rollout_reuse=2), [ImageSize(64, 64), ImageSize(32, 64)]
    schedule = EvenFlowSchedule(lambda pixels, steps: math.exp(pixels / 64**2 + 1 / steps))
    grids = DistillationContext.sized_grids(run.config, schedule, sizes, CPU)
    run = replace(run, grids_by_size=grids, latent_shapes=[(8, 8, 8), (8, 4, 8)], **grids[0])
    for index in (1, 0):
        mine, own = replace(batch(0, 1, step=5 + index), rollout_step=5 + index, size_index=index), grids[index]
        run.family.calls.clear()
        student_loss(run, mine)
        student, teacher, fake = (run.family.of(getattr(run.networks, name)) for name in ("student", "teacher", "fake"))
        assert [call.sigma[0].item() for call in student] == own["student_sigmas"][:-1].tolist()
        assert [call.sigma[0].item() for call in teacher[1:]] == own["teacher_sigmas"][:K].tolist()
        assert torch.isin(teacher[0].sigma, own["score_sigmas"]).all() and student[0].z.shape[2:] == (
            4 * (2 - index),
            8,
        )
        assert torch.equal(fake[0].sigma, teacher[0].sigma[:2])
        assert not torch.isin(fake[0].sigma, grids[1 - index]["score_sigmas"]).any()
        run.family.calls.clear()
        fake_score_loss(run, mine)
        assert [call.sigma[0].item() for call in run.family.of(run.networks.student)] == [c.sigma[0] for c in student]
        assert torch.isin(run.family.of(run.networks.fake)[0].sigma, own["score_sigmas"]).all()
        fake_score_loss(run, mine)  # the shared samples
        assert len(run.family.of(run.networks.student)) == STEPS
        run.family.calls.clear()
        run.at_size(index).teacher_samples(mine)
        sampled = [call.sigma[0].item() for call in run.family.of(run.networks.teacher)]
        assert sampled == own["teacher_sigmas"][:-1].tolist() * 2


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_both_updates_roll_out_the_same_samples(make, batch, compute_dtype):
    """Without gradient (fake-score update) and with it (student update) the student predicts the same bits."""
    run = make(SpyFamily(compute_dtype))
    fake_score_loss(run, batch(0, 1))
    without = [call.prediction for call in run.family.of(run.networks.student)]
    run.family.calls.clear()
    student_loss(run, batch(0, 1))
    having = [call.prediction for call in run.family.of(run.networks.student)]
    assert not any(prediction.requires_grad for prediction in without) and having[0].requires_grad
    assert [torch.equal(left, right) for left, right in zip(without, having, strict=True)] == [True] * STEPS


def test_calls_with_gradient_go_through_the_trainers_wrappers(make, batch):
    """A wrapped network averages gradients over processes only if the wrapper is called: each update must call its own.

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


@pytest.mark.parametrize("update", [student_loss, fake_score_loss])
def test_accumulation_gives_the_whole_batchs_gradient(make, batch, update):
    """2 micro-batches of 1, losses halved, add up to the gradient of a batch of 2 (pitfall 12)."""
    found = []
    for split in ([(0, 1)], [(0,), (1,)]):
        run = make()
        for samples in split:
            (update(run, batch(*samples)).loss / len(split)).backward()
        trained = run.networks.student if update is student_loss else run.networks.fake
        found.append(torch.cat([gradient.flatten() for gradient in gradients(trained)]))
    # The same sums in another order: predictions differ by about 1e-6, and guidance, the division by 1 - t_k = 0.14
    # and the normaliser enlarge that by some ten times. A doubled, halved or lost micro-batch differs by its own size.
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()
    assert found[0].norm() > 0
