"""LoRA on one frozen base: three views that must act as three networks would."""

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from dpdmd.config import Config
from dpdmd.config.options import ModelConfig
from dpdmd.methods.networks import Networks, load_networks
from dpdmd.models import lora, lora_files
from dpdmd.models.lora import Adapter
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sd35.family import SD35

CPU = torch.device("cpu")
RANK, ALPHA = 2, 6.0


def configuration(folder: Path, **model) -> Config:
    config = Config()
    config.model = ModelConfig(teacher_id=str(folder), lora_rank=RANK, lora_alpha=ALPHA, **model)
    config.model.student_id = config.model.fake_id = config.model.teacher_id
    return config


@pytest.fixture
def shared(tiny_pipeline: Path) -> Networks:
    return load_networks(configuration(tiny_pipeline), SD35(CPU, torch.float32))


@pytest.fixture(scope="module")
def inputs(tiny_pipeline: Path) -> dict[str, Tensor]:
    """Return inputs of the tiny network."""
    config = LAYOUTS["sd35"].network_config(tiny_pipeline)
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, config["in_channels"], 8, 8, generator=draw),
        "timestep": torch.tensor([300.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 5, config["joint_attention_dim"], generator=draw),
        "pooled_projections": torch.randn(2, config["pooled_projection_dim"], generator=draw),
    }


def call(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(**inputs, return_dict=False)[0]


def draw_b(view: nn.Module, seed: int) -> None:
    """Draw B, which is zero at the start, so that the adapter changes the output."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in view.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))


def base_weights(view: lora.AdapterView) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in view.base.network.state_dict().items() if ".lora_" not in name}


def test_all_three_start_as_the_teacher_and_hold_their_adapter_alone(shared, inputs, tiny_pipeline):
    family = SD35(CPU, torch.float32)
    plain = call(family.load_network(tiny_pipeline, torch.float32), inputs)
    for network in (shared.teacher, shared.student, shared.fake):
        assert torch.equal(call(network, inputs), plain)
    assert list(shared.teacher.parameters()) == []
    expected = LAYOUTS["sd35"].count_adapter_parameters(tiny_pipeline, LAYOUTS["sd35"].lora_targets, RANK)
    assert sum(p.numel() for p in shared.student.parameters()) == expected > 0
    assert not {id(p) for p in shared.student.parameters()} & {id(p) for p in shared.fake.parameters()}
    assert all(p.dtype == torch.float32 and p.requires_grad for p in shared.student.parameters())


def test_adapters_stay_fp32_beside_a_bf16_base(tiny_pipeline, inputs):
    networks = load_networks(configuration(tiny_pipeline), SD35(CPU, torch.bfloat16))
    assert {p.dtype for p in networks.student.base.network.parameters()} == {torch.float32, torch.bfloat16}
    assert {p.dtype for p in networks.student.parameters()} == {torch.float32}


def test_where_adapters_start_depends_on_the_seed_alone(tiny_pipeline):
    """Other draws from torch's generator do not matter, so a resumed run and a second rank start the same."""
    torch.manual_seed(1)
    first = load_networks(configuration(tiny_pipeline), SD35(CPU, torch.float32))
    torch.manual_seed(2)
    second = load_networks(configuration(tiny_pipeline), SD35(CPU, torch.float32))
    ours, theirs = first.student.state_dict(), second.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], first.fake.state_dict()[name]) for name in ours)


def separate(networks: Networks, name: str) -> lora.AdapterView:
    """Return a view of one adapter on its own copy of the base."""
    base = copy.deepcopy(getattr(networks, name).base)
    base.layers = [module for module in base.network.modules() if hasattr(module, "_active_adapter")]
    return lora.AdapterView(base, name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "recomputed"])
def test_one_base_gives_what_two_copies_give(shared, inputs, checkpointing):
    """Several micro-batches and updates, with forward passes of one view between forward and backward of the other.

    peft's own switches lose gradients there, and a recomputation would use the wrong adapter.
    """
    draw_b(shared.student, 1)
    draw_b(shared.fake, 2)
    apart = {name: separate(shared, name) for name in ("student", "fake")}
    base = base_weights(shared.student)
    trained = {}
    for base_of, views in (("shared", vars(shared)), ("apart", apart)):
        student, fake = views["student"], views["fake"]
        if checkpointing:
            student.enable_gradient_checkpointing()
            fake.enable_gradient_checkpointing()
        optimizers = [torch.optim.AdamW(view.parameters(), lr=1e-2) for view in (student, fake)]
        for _ in range(3):
            for _micro_batch in range(2):
                output = call(student, inputs)
                score = call(fake, {**inputs, "hidden_states": output.detach()})
                with torch.no_grad():
                    call(shared.teacher if base_of == "shared" else student, inputs)
                output.square().mean().backward()
                score.square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        trained[base_of] = {name: view.state_dict() for name, view in (("student", student), ("fake", fake))}
    for name in ("student", "fake"):
        for key, value in trained["apart"][name].items():
            assert torch.equal(trained["shared"][name][key], value), (name, key)
    after = base_weights(shared.student)
    assert all(torch.equal(base[name], after[name]) for name in base)


def test_recomputation_that_sees_another_adapter_would_be_noticed(shared, inputs):
    """The test above can fail: diffusers' own checkpointing is wrong if the other view is called in between."""
    draw_b(shared.student, 1)
    draw_b(shared.fake, 2)

    def gradient() -> Tensor:
        shared.student.zero_grad()
        output = call(shared.student, inputs)
        with shared.student.base.active_adapter("fake"):
            output.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in shared.student.parameters() if p.grad is not None])

    plain = gradient()
    shared.student.enable_gradient_checkpointing()
    assert torch.equal(gradient(), plain)
    shared.student.base.network.enable_gradient_checkpointing()
    broken = gradient()
    assert broken.shape != plain.shape or not torch.allclose(broken, plain)


DROPOUT = 0.5


@pytest.fixture
def dropping(tiny_pipeline: Path) -> Networks:
    """Return networks whose adapters change the output and drop half of their inputs."""
    networks = load_networks(configuration(tiny_pipeline, lora_dropout=DROPOUT), SD35(CPU, torch.float32))
    draw_b(networks.student, 1)
    draw_b(networks.fake, 2)
    return networks


def test_dropout_is_in_calls_with_gradient_of_the_trained_adapter_alone(dropping, shared, inputs):
    """Evaluation, the other adapter and the teacher compute what they compute without dropout, to the bit."""
    draw_b(shared.student, 1)
    draw_b(shared.fake, 2)
    student = dropping.student
    with student.dropping_out(0, 5, [0, 1]):
        for other in ("teacher", "fake"):
            assert torch.equal(call(getattr(dropping, other), inputs), call(getattr(shared, other), inputs))
        with torch.no_grad():
            assert torch.equal(call(student, inputs), call(shared.student, inputs))
        assert (call(student, inputs) - call(shared.student, inputs)).abs().max() > 1e-3
    assert torch.equal(call(student, inputs), call(shared.student, inputs))
    student.train()
    assert torch.equal(call(student, inputs), call(shared.student, inputs))


def test_masks_are_named_by_seed_step_sample_and_call(dropping, inputs):
    def outputs(seed: int, step: int, samples: list[int]) -> list[Tensor]:
        rows = {name: value[: len(samples)] for name, value in inputs.items()}
        with dropping.student.dropping_out(seed, step, samples):
            return [call(dropping.student, rows).detach() for _ in range(2)]

    first, second = outputs(0, 5, [0, 1])
    torch.manual_seed(7)  # global state does not matter
    again = outputs(0, 5, [0, 1])
    assert torch.equal(first, again[0]) and torch.equal(second, again[1]) and not torch.equal(first, second)
    for other in ((1, 5, [0, 1]), (0, 6, [0, 1]), (0, 5, [2, 3])):
        assert not torch.equal(outputs(*other)[0], first)
    torch.testing.assert_close(outputs(0, 5, [0])[0], first[:1])  # a sample's masks do not depend on its batch


def test_dropout_keeps_the_mean_and_drops_its_share(dropping):
    layer = next(m for m in dropping.student.base.layers if "student" in m.lora_dropout)
    drop, x = layer.lora_dropout["student"], torch.ones(3, 200, 50)
    with dropping.student.base.active_adapter("student", lora.DropoutCall(0, 1, [4, 5, 6])):
        dropped = drop(x)
        with pytest.raises(ValueError, match="2 rows for 3 samples"):
            drop(x[:2])
    assert dropped.unique().tolist() == [0, 1 / (1 - DROPOUT)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert not torch.equal(dropped[0], dropped[1])


def test_recomputation_draws_the_masks_of_the_forward_pass(dropping, inputs):
    """Two calls are in flight, and their backward pass runs outside of the context, after calls of another step."""

    def gradients() -> Tensor:
        dropping.student.zero_grad()
        with dropping.student.dropping_out(0, 5, [0, 1]):
            output = call(dropping.student, inputs)
            output = output + call(dropping.student, {**inputs, "hidden_states": output})
        with dropping.fake.dropping_out(0, 6, [0, 1]):
            call(dropping.fake, inputs)
            output.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in dropping.student.parameters() if p.grad is not None])

    plain = gradients()
    dropping.student.enable_gradient_checkpointing()
    assert torch.equal(gradients(), plain)

    def without_masks(module: nn.Module, *arguments) -> Tensor:
        contexts = nullcontext(), dropping.student.base.active_adapter("student")
        return checkpoint(module.__call__, *arguments, use_reentrant=False, context_fn=lambda: contexts)

    dropping.student.enable_gradient_checkpointing(without_masks)
    with pytest.raises(CheckpointError, match="A different number of tensors was saved"):
        gradients()


def test_without_dropout_the_layers_are_pefts(shared):
    assert not any(isinstance(module, lora.NamedDropout) for module in shared.student.base.network.modules())


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    """safetensors has an error of its own, which no program expects."""

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(lora_files, "save_file", full)
    state = {"a.lora_A.weight": torch.ones(1, 1), "a.lora_B.weight": torch.ones(1, 1)}
    with pytest.raises(OSError, match=r"safetensors: cannot be written \(.*No space left on device"):
        lora_files.save_lora(tmp_path, state, Adapter(1, 1.0, ("a",)), "transformer")
