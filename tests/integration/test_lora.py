"""LoRA on one frozen base: three roles that must be what three networks would be, and files that others read."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from dpdmd import export, train
from dpdmd.config import Config, read_yaml
from dpdmd.config.options import ModelConfig
from dpdmd.methods.networks import Networks, load_networks
from dpdmd.models import lora
from dpdmd.models.layout import LORA_WEIGHTS
from dpdmd.models.lora_config import Adapter
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.sd35.family import SD35
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import checkpoint

CPU = torch.device("cpu")
RANK, ALPHA = 2, 6.0
LORA_FLAGS = ["--lora_rank", str(RANK), "--lora_alpha", str(ALPHA)]


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
    """Something that the tiny network can be called with."""
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


def stir(role: nn.Module, seed: int) -> None:
    """Adapters start as no change; give B weights."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in role.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))


def base_weights(role: lora.AdapterView) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in role.base.network.state_dict().items() if ".lora_" not in name}


# The roles


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
    """Not on what drew from torch's generator before, so a resumed or second rank starts the same."""
    torch.manual_seed(1)
    first = load_networks(configuration(tiny_pipeline), SD35(CPU, torch.float32))
    torch.manual_seed(2)
    second = load_networks(configuration(tiny_pipeline), SD35(CPU, torch.float32))
    ours, theirs = first.student.state_dict(), second.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], first.fake.state_dict()[name]) for name in ours)


def separate(networks: Networks, name: str) -> lora.AdapterView:
    """A role on a copy of the base of its own."""
    base = copy.deepcopy(getattr(networks, name).base)
    base.layers = [module for module in base.network.modules() if hasattr(module, "_active_adapter")]
    return lora.AdapterView(base, name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "recomputed"])
def test_one_base_gives_what_two_copies_give(shared, inputs, checkpointing):
    """Forward passes of one role between the forward and the backward of the other, over several micro-batches and
    updates: peft's own switches lose gradients there, and a recomputation would see the wrong adapter."""
    stir(shared.student, 1)
    stir(shared.fake, 2)
    apart = {name: separate(shared, name) for name in ("student", "fake")}
    base = base_weights(shared.student)
    trained = {}
    for where, roles in (("shared", vars(shared)), ("apart", apart)):
        student, fake = roles["student"], roles["fake"]
        if checkpointing:
            student.enable_gradient_checkpointing()
            fake.enable_gradient_checkpointing()
        optimizers = [torch.optim.AdamW(role.parameters(), lr=1e-2) for role in (student, fake)]
        for _ in range(3):
            for _micro_batch in range(2):
                made = call(student, inputs)
                seen = call(fake, {**inputs, "hidden_states": made.detach()})
                with torch.no_grad():
                    call(shared.teacher if where == "shared" else student, inputs)
                made.square().mean().backward()
                seen.square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        trained[where] = {name: role.state_dict() for name, role in (("student", student), ("fake", fake))}
    for name in ("student", "fake"):
        for key, value in trained["apart"][name].items():
            assert torch.equal(trained["shared"][name][key], value), (name, key)
    after = base_weights(shared.student)
    assert all(torch.equal(base[name], after[name]) for name in base)


def test_recomputation_that_sees_another_adapter_would_be_noticed(shared, inputs):
    """What the test above is worth: diffusers' own checkpointing, with the other role called in between, is wrong."""
    stir(shared.student, 1)
    stir(shared.fake, 2)

    def gradient() -> Tensor:
        shared.student.zero_grad()
        made = call(shared.student, inputs)
        with shared.student.base.active_adapter("fake"):
            made.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in shared.student.parameters() if p.grad is not None])

    plain = gradient()
    shared.student.enable_gradient_checkpointing()
    assert torch.equal(gradient(), plain)
    shared.student.base.network.enable_gradient_checkpointing()
    broken = gradient()
    assert broken.shape != plain.shape or not torch.allclose(broken, plain)


def test_ranks_and_alphas_of_the_flags():
    pair = adapters(ModelConfig(lora_rank=4, lora_alpha=2.0, fake_lora_rank=8, lora_targets="to_q,to_k"))
    assert pair.student == Adapter(4, 2.0, ("to_q", "to_k"))
    assert pair.fake == Adapter(8, 4.0, ("to_q", "to_k"))  # the same scale of the update
    assert adapters(ModelConfig()) is None
    assert adapters(ModelConfig(lora_rank=4)).student.alpha == 4


# Runs


@pytest.fixture(scope="module")
def lora_run(short_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps with adapters, checkpoints at 5 and 9."""
    run = tmp_path_factory.mktemp("lora") / "run"
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    assert train.main([*command, "--run_dir", str(run), "--max_steps", "9", "--ckpt_every", "5"]) == 0
    return run


def final_state(run: Path, step: int = 9) -> dict[str, Tensor]:
    folder = run / "ckpts" / f"step_{step:06d}"
    files = [folder / "lora" / LORA_WEIGHTS, *sorted((folder / "state").glob("*.safetensors"))]
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize("extra", [[], ["--gradient_checkpointing"]], ids=["plain", "recomputed"])
def test_a_resumed_run_ends_in_the_same_bytes(lora_run, short_run, tmp_path, extra):
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    command += ["--run_dir", str(tmp_path / "run"), *extra]
    assert train.main([*command, "--max_steps", "5"]) == 0
    assert train.main([*command, "--max_steps", "9", "--resume_from_checkpoint", "latest"]) == 0
    ours, theirs = final_state(tmp_path / "run"), final_state(lora_run)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_estimate_is_what_a_checkpoint_takes(lora_run, tiny_pipeline):
    taken = sum(path.stat().st_size for path in (lora_run / "ckpts" / "step_000009").rglob("*.safetensors"))
    estimate = checkpoint.size_in_bytes(read_yaml(lora_run / "config.yaml"))
    assert estimate == sum(value.numel() * value.element_size() for value in every_tensor(lora_run))
    assert taken > estimate  # the rest are headers, which count for adapters this small


def every_tensor(run: Path) -> list[Tensor]:
    """Of all files of the last checkpoint but AdamW's step counters and the alphas."""
    found = []
    for path in (run / "ckpts" / "step_000009").rglob("*.safetensors"):
        found += [value for value in load_file(path).values() if value.ndim > 0]
    return found


def test_two_processes_train_the_same_adapters(lora_run, short_run, run_processes, tmp_path):
    """Batch 1 on each of two processes is batch 2 on one: each DDP wrapper averages its own adapter's gradients."""
    command = [*short_run, *LORA_FLAGS, "--lr_student", "1e-2", "--lr_fake", "1e-2", "--per_train_fake_num", "2"]
    command += ["--batch_size", "1", "--run_dir", str(tmp_path / "run"), "--max_steps", "9"]
    run_processes(["-m", "dpdmd.train", *command])
    ours, theirs = final_state(tmp_path / "run"), final_state(lora_run)
    moments = [name for name in ours if "optimizer" in name]
    weights = [name for name in ours if "optimizer" not in name]
    assert moments and weights
    for name in weights:  # Adam's first steps are of the size of the rate whatever the gradient: 1e-2 an update
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)


# Files


def our_image(run: Path, base: Path | None = None) -> Tensor:
    sampler, encoder = load_sampler(run, CPU, base_model=base)
    return sampler.images(encoder.encode(["a red circle"]), [(0, 0)], seed=0)


def test_diffusers_loads_the_lora_and_makes_our_image(lora_run, tiny_pipeline):
    """alpha is three times the rank: without the file's metadata diffusers would take them for equal."""
    folder = lora_run / "ckpts" / "latest" / "lora"
    sampler, encoder = load_sampler(lora_run, CPU)
    text, pipe = encoder.encode(["a red circle"]), StableDiffusion3Pipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    eps = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    def theirs() -> Tensor:
        return pipe(
            prompt_embeds=text.context,
            pooled_prompt_embeds=text.pooled,
            latents=eps.clone(),
            num_inference_steps=2,
            guidance_scale=1.0,
            height=64,
            width=64,
            output_type="latent",
        ).images

    teacher = theirs()
    pipe.load_lora_weights(folder)
    student = sampler.latents(text, eps)
    torch.testing.assert_close(theirs(), student, rtol=1e-4, atol=1e-4)
    assert (teacher - student).abs().max() > 0.01


def test_comfyui_reads_the_same_change(lora_run):
    """B A alpha / rank from ComfyUI's names is the change of each merged weight."""
    folder = lora_run / "ckpts" / "latest" / "lora"
    named, ours = load_file(folder / lora.COMFYUI_WEIGHTS), load_file(folder / LORA_WEIGHTS)
    layers = {name.removesuffix(".alpha") for name in named if name.endswith(".alpha")}
    assert len(named) == 3 * len(layers) == len(ours) * 3 // 2
    assert all(layer.startswith("transformer.transformer_blocks.") for layer in layers)
    network = SD35(CPU, torch.float32).load_network(
        Path(read_sampling_defaults(folder, LAYOUTS["sd35"].defaults).base), torch.float32
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    SD35(CPU, torch.float32).load_lora(network, folder)
    after = lora.merged(network).state_dict()
    assert after.keys() == before.keys()
    changed = 0.0
    for layer in layers:
        change = named[f"{layer}.lora_B.weight"] @ named[f"{layer}.lora_A.weight"] * named[f"{layer}.alpha"] / RANK
        name = layer.removeprefix("transformer.") + ".weight"
        torch.testing.assert_close(after[name] - before[name], change, rtol=1e-4, atol=1e-6)
        changed = max(changed, change.abs().max().item())
    assert changed > 1e-3


def test_an_export_is_whole_and_makes_the_same_image(lora_run, tmp_path):
    assert export.main(["--model", str(lora_run), "--out", str(tmp_path / "whole")]) == 0
    torch.testing.assert_close(our_image(tmp_path / "whole"), our_image(lora_run), rtol=0, atol=1e-4)
    assert not any(path.is_symlink() for path in (tmp_path / "whole").rglob("*"))
    assert export.main(["--model", str(lora_run), "--out", str(tmp_path / "whole")]) == 2


def test_a_lora_folder_finds_its_base_or_is_told_it(lora_run, tiny_pipeline, tmp_path):
    alone = tmp_path / "lora"
    shutil.copytree(lora_run / "ckpts" / "latest" / "lora", alone)
    assert torch.equal(our_image(alone), our_image(lora_run))
    defaults = json.loads((alone / "dpdmd.json").read_text())
    (alone / "dpdmd.json").write_text(json.dumps({**defaults, "base": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="gone, which is not there; give --base_model"):
        load_sampler(alone, CPU)
    assert torch.equal(our_image(alone, tiny_pipeline), our_image(lora_run))
