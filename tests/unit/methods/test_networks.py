"""The precision of the three networks, and gradient checkpointing."""

import copy

import pytest
import torch
from small_distillation import STEPS, UNUSED, SpyFamily, gradients, perturb, weights
from torch import Tensor

from dpdmd.config import Config
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks, blocks_owner, load_networks, recompute_blocks
from dpdmd.methods.updates import fake_score_loss, student_loss
from dpdmd.models.sd35.family import SD35


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_times_and_predictions_are_fp32_in_any_compute_type(make, batch, compute_dtype):
    """The network gets 1000 sigma in fp32, returns fp32, and computes inside in the compute type.

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


def adam_updates(run: DistillationContext, batch: MicroBatch, count: int, lr: float) -> dict[str, Tensor]:
    """Change of each of the student's weights after `count` AdamW updates on one and the same batch."""
    before = weights(run.networks.student)
    optimizer = torch.optim.AdamW(run.networks.student.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(count):
        student_loss(run, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.double() - before[name].double() for name, value in weights(run.networks.student).items()}


@pytest.mark.parametrize("rank", [None, 2])
def test_a_base_that_will_be_sharded_stays_off_the_device(tiny_pipeline, rank):
    """The device may be too small for the whole network. A device that holds no numbers stands for a GPU."""
    family, config = SD35(torch.device("meta"), torch.float32), Config()
    config.model.teacher_id = config.model.fake_id = str(tiny_pipeline)
    config.model.lora_rank = rank
    for placed, device in ((True, "meta"), (False, "cpu")):
        networks = load_networks(config, family, tiny_pipeline, place_frozen=placed)
        frozen = [weight for weight in blocks_owner(networks.teacher).parameters() if not weight.requires_grad]
        assert {weight.device.type for weight in frozen} == {device}


def test_fp32_master_weights_keep_updates_that_bf16_loses(tiny_pipeline, make, batch):
    """At lr 1e-5, ten AdamW updates in one direction move fp32 weights by about 1e-4; bf16 weights stand still.

    Half a bf16 step of a weight above 0.0157 is at least 3e-5, more than one update, so each is rounded away
    (pitfall 16); a student loaded in the compute type would train nothing without an error.
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
    # Adam's step is lr times about 1 while the gradient keeps its sign; where it changes, the sum is less.
    assert 0.9e-4 < ours.mean() < 1.05e-4
    assert (ours > 0).all()
    assert (theirs == 0).all()


@pytest.mark.parametrize("update", [student_loss, fake_score_loss])
def test_gradient_checkpointing_recomputes_once_and_changes_nothing(make, batch, update):
    """Gradients are bit-equal, and a recomputed block runs twice per call with gradient, not three times."""
    found, counts = [], []
    for recomputed in ("0", "1", "all"):
        run = make()
        trained = run.networks.student if update is student_loss else run.networks.fake
        recompute_blocks(trained, run.family, recomputed)
        # Before the forward: the recomputation ends as soon as it has what the backward pass needs.
        forwards: list[int] = []
        for index, block in enumerate(trained.transformer_blocks):
            block.register_forward_pre_hook(lambda *_, forwards=forwards, index=index: forwards.append(index))
        update(run, batch(0, 1)).loss.backward()
        found.append(gradients(trained))
        counts.append([forwards.count(index) for index in range(len(trained.transformer_blocks))])
    calls = STEPS if update is student_loss else 1
    others = len(counts[0]) - 1
    assert counts == [[calls] * (1 + others), [2 * calls, *[calls] * others], [2 * calls] * (1 + others)]
    assert all(torch.equal(plain, one) and torch.equal(plain, every) for plain, one, every in zip(*found, strict=True))
