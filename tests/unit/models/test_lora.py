"""LoRA on one frozen base: three views that must act as three networks would."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpdmd.config import Config
from dpdmd.config.options import ModelConfig
from dpdmd.methods.networks import Networks, load_networks
from dpdmd.models import lora
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
