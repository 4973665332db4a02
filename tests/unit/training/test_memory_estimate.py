"""The plan of device memory: its arithmetic against what autograd keeps, and its sums, warnings and advice."""

from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from memory_count import LiveStorages, as_on_cuda, kept_bytes
from sd35_medium import TRANSFORMER, VAE, save_hollow
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dpdmd import config
from dpdmd.config import options
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.methods.networks import recompute_blocks
from dpdmd.models import lora
from dpdmd.models.activation_memory import CallShape, decode_bytes, sd3_call_memory
from dpdmd.models.lora_config import Adapter
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sd35.family import SD35
from dpdmd.training import checkpoint
from dpdmd.training.memory_estimate import MemoryEstimate, estimate_memory, fewest_recomputed_blocks
from dpdmd.training.memory_items import (
    ENCODING,
    FAKE,
    IMAGES,
    STUDENT,
    MemoryItem,
    Topology,
    scorer_bytes,
)

NO_EVALUATION = EvalSetup([], {}, "")
ARCHITECTURES = {  # heads, width of a head, blocks, dual blocks, normed q and k
    "one dual of two": (2, 16, 2, 1, "rms_norm"),
    "no dual": (4, 16, 4, 0, "rms_norm"),
    "all dual": (4, 32, 3, 3, "rms_norm"),
    "q and k as they are": (4, 32, 2, 0, None),
}
SHAPES = [(1, 32, 20), (4, 16, 30), (2, 64, 87)]  # batch, latents a side, text tokens


def transformer(heads: int, head_width: int, blocks: int, dual: int, qk_norm: str | None) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=64,
        num_layers=blocks,
        num_attention_heads=heads,
        attention_head_dim=head_width,
        caption_projection_dim=heads * head_width,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        pos_embed_max_size=48,
        qk_norm=qk_norm,
        dual_attention_layers=tuple(range(dual)),
    )


def call(network: SD3Transformer2DModel, shape: tuple[int, int, int], bf16: bool) -> torch.Tensor:
    batch, side, tokens = shape
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        return network(
            hidden_states=torch.randn(batch, 16, side, side),
            timestep=torch.full((batch,), 500.0),
            encoder_hidden_states=torch.randn(batch, tokens, 96, dtype=dtype),
            pooled_projections=torch.randn(batch, 64, dtype=dtype),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_what_autograd_keeps_is_what_the_formula_says(name, bf16):
    """Unique storages, counted by saved_tensors_hooks, with none, one and all of the blocks recomputed."""
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        network = transformer(*ARCHITECTURES[name])
        family, blocks = SD35(torch.device("cpu"), torch.float32), len(network.transformer_blocks)
        for shape, recomputed in product(SHAPES, (0, 1, blocks)):
            recompute_blocks(network, family, str(recomputed))
            counted = kept_bytes(network, lambda shape=shape: call(network, shape, bf16))
            batch, side, tokens = shape
            memory = sd3_call_memory(network.config, CallShape(batch, 8 * side, 8 * side, tokens, bf16, True), 8)
            assert memory.kept(recomputed) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_what_autograd_keeps_for_adapters_is_what_the_formula_says(name, bf16):
    """On a base in the compute type: what only frozen weights would need is not kept."""
    rank, before = 4, torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        torch.set_default_dtype(torch.bfloat16 if bf16 else before)
        try:
            base = transformer(*ARCHITECTURES[name])
        finally:
            torch.set_default_dtype(before)
        adapter = Adapter(rank, float(rank), LAYOUTS["sd35"].lora_targets)
        # peft moves new layers to their base's device and type; tensors without data cannot be moved in place.
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            _, student, _ = lora.share(base, adapter, adapter, 0)
        family, blocks = SD35(torch.device("cpu"), torch.float32), len(base.transformer_blocks)
        for shape, recomputed in product(SHAPES, (0, 1, blocks)):
            recompute_blocks(student, family, str(recomputed))
            counted = kept_bytes(base, lambda shape=shape: call(student, shape, bf16))
            batch, side, tokens = shape
            memory = sd3_call_memory(base.config, CallShape(batch, 8 * side, 8 * side, tokens, bf16, False, rank), 8)
            assert memory.kept(recomputed) == pytest.approx(counted, rel=0.1)


def test_counting_without_data_gives_what_real_tensors_give():
    shape, real = SHAPES[0], transformer(*ARCHITECTURES["one dual of two"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = transformer(*ARCHITECTURES["one dual of two"])
        without_data = kept_bytes(fake, lambda: call(fake, shape, False))
    assert without_data == kept_bytes(real, lambda: call(real, shape, False)) > 0


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recomputed", [0, 1, 3])
def test_the_most_that_lives_in_a_backward_pass_is_what_the_formula_says(bf16, recomputed):
    """Real sizes, since what works beside the graph is a few tensors; gradients of the weights are small here."""
    shape = (8, 64, 64)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        network = transformer(8, 32, 3, 2, "rms_norm")
        recompute_blocks(network, SD35(torch.device("cpu"), torch.float32), str(recomputed))
        with LiveStorages([*network.parameters(), *network.buffers()]) as live:
            call(network, shape, bf16).float().mean().backward()
        with torch.no_grad(), LiveStorages([*network.parameters(), *network.buffers()]) as passing:
            call(network, shape, bf16)
    memory = sd3_call_memory(network.config, CallShape(8, 512, 512, 64, bf16, True), 8)
    assert memory.kept(recomputed) + memory.working(recomputed) == pytest.approx(live.peak, rel=0.1)
    assert memory.passing == pytest.approx(passing.peak, rel=0.1)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_decoding_takes_what_the_formula_says(bf16):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if bf16 else before)
    try:
        with FakeTensorMode(), torch.no_grad():
            vae, latents = AutoencoderKL(**VAE), torch.randn(1, 16, 64, 64)
            with LiveStorages(list(vae.parameters())) as live:
                vae.decode(latents)
    finally:
        torch.set_default_dtype(before)
    assert decode_bytes(VAE, 512 * 512, bf16) == pytest.approx(live.peak, rel=0.05)


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD3.5-Medium's folder without its weights."""
    folder = tmp_path_factory.mktemp("weights") / "sd35"
    save_hollow(folder)
    return folder


def plan_config(medium: Path, *flags: str) -> config.Config:
    return config.parse(["--teacher_id", str(medium), "--bf16", "--gradient_checkpointing", *flags])


def plan(medium: Path, *flags: str, topology: Topology | None = None, device: int | None = None) -> MemoryEstimate:
    return estimate_memory(plan_config(medium, *flags), NO_EVALUATION, topology or Topology(), device)


def sizes(planned: MemoryEstimate) -> dict[str, int]:
    return {row.name: row.bytes for row in planned.items if row.phases != (FAKE,)}


def test_weights_gradients_and_moments_are_counted_by_number(medium):
    """2,243.2 M trained numbers, and 226.5 M of a position table that is no parameter."""
    found, trained, table = sizes(plan(medium)), LAYOUTS["sd35"].count_trained(medium), 384 * 384 * 1536
    assert LAYOUTS["sd35"].count_parameters(medium) == trained + table
    assert found["teacher"] == 2 * (trained + table)
    assert found["student, master weights"] == 4 * (trained + table)
    assert found["student, gradients"] == 4 * trained
    assert found["student, optimizer"] == found["fake score, optimizer"] == 8 * trained


@pytest.mark.parametrize(("flags", "moments"), [([], 8), (["--optimizer", "adamw_8bit"], 2 * (1 + 4 / 256))])
def test_a_checkpoint_holds_moments_of_what_is_trained_alone(medium, flags, moments):
    """55.6 GB with AdamW, 28.9 with 8 bits; a moving average is one more export."""
    trained, whole = LAYOUTS["sd35"].count_trained(medium), LAYOUTS["sd35"].count_parameters(medium)
    config, averaged = plan_config(medium, *flags), plan_config(medium, *flags, "--ema_decay", "0.99")
    assert checkpoint.size_in_bytes(config) == int(2 * 4 * whole + 2 * moments * trained)
    assert checkpoint.size_in_bytes(averaged) == checkpoint.size_in_bytes(config) + 4 * whole


def test_lora_has_one_base_and_small_adapters(medium):
    found, whole = sizes(plan(medium, "--lora_rank", "64")), LAYOUTS["sd35"].count_parameters(medium)
    assert found["teacher, the base of all three"] == 2 * whole
    assert found["student, adapter"] < 0.05 * 4 * whole
    assert "student, master weights" not in found


@pytest.mark.parametrize(
    ("flags", "row", "falls"),
    [
        (["--batch_size", "2"], "student, graphs", 0.5),
        (["--stu_inference_steps", "2"], "student, graphs", 0.5),
        (["--optimizer", "adamw_8bit"], "student, optimizer", 0.25),
        (["--height", "512"], "student, graphs", 0.52),
    ],
)
def test_a_flag_lowers_its_row(medium, flags, row, falls):
    before, after = sizes(plan(medium))[row], sizes(plan(medium, *flags))[row]
    assert after / before == pytest.approx(falls, rel=0.05)


def test_a_discriminator_looks_through_a_graph_of_its_own(medium):
    """Through the fake score, whose blocks are recomputed, or the teacher, whose are not."""
    plain, fake, teacher = (
        sizes(plan(medium, "--method", "dmd", *flags))["at work"]
        for flags in ([], ["--method", "dmd_gan"], ["--method", "dmd_gan", "--gan_features", "teacher"])
    )
    call = LAYOUTS["sd35"].memory_of_call(medium, CallShape(4, 1024, 1024, 77 + 256, True, True))
    assert plain < fake == call.kept(24) + call.working(24) < teacher == call.kept(0) + call.working(0)


def test_what_is_offloaded_or_encoded_ahead_is_not_there_in_a_turn(medium):
    """Its row stays, in the phase that needs it."""
    before, after = plan(medium), plan(medium, "--cache_text_embeddings", "cache", "--offload_vae")
    gone = sizes(before)["text encoders"] + sizes(before)["autoencoder"]
    assert before.bytes_in_phase(STUDENT) - after.bytes_in_phase(STUDENT) == gone
    assert before.bytes_in_phase(IMAGES) > after.bytes_in_phase(IMAGES)
    assert after.bytes_in_phase(ENCODING) > sizes(before)["text encoders"]


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (["--method", "dpdmd"], 3),
        (["--method", "dmd_gan"], 3),  # whose fake turn has the teacher's samples
        (["--method", "dmd_lpips", "--perceptual_path", "weights"], 4),
    ],
)
@pytest.mark.parametrize(("batch", "columns"), [(2, 2), (16, 8)])
def test_images_of_a_student_turn_are_decoded_together(medium, flags, kinds, batch, columns):
    found = sizes(plan(medium, "--batch_size", str(batch), *flags))["making images"]
    assert found == kinds * columns * decode_bytes(VAE, 1024 * 1024, True)


def test_sharding_divides_and_ddp_adds_buckets(medium):
    """Parameters are divided; the position table, a buffer, is whole on each process, in each network."""
    alone, table = sizes(plan(medium)), 384 * 384 * 1536
    sharded = sizes(plan(medium, topology=Topology(8, sharded=True)))
    replicated = sizes(plan(medium, topology=Topology(8)))
    for name in ("student, gradients", "student, optimizer"):
        assert sharded[name] == alone[name] // 8 and replicated[name] == alone[name]
    masters = "student, master weights"
    assert replicated[masters] == alone[masters]
    assert sharded[masters] == (alone[masters] - 4 * table) // 8 + 4 * table
    assert sharded["teacher"] == alone["teacher"]
    frozen = sizes(plan(medium, "--shard_teacher", topology=Topology(8, sharded=True)))["teacher"]
    assert frozen == (alone["teacher"] - 2 * table) // 8 + 2 * table
    assert replicated["student, DDP's buckets"] == alone["student, gradients"]


def test_what_is_gathered_is_parameters(medium):
    """Those in no block, of SD3.5-M 19.5 M, and three blocks of the mean 92.7 M; the buffer is counted where it is."""
    with torch.device("meta"):
        network = SD3Transformer2DModel(**TRANSFORMER)
    in_blocks = sum(p.numel() for p in network.transformer_blocks.parameters())
    outside = sum(p.numel() for p in network.parameters()) - in_blocks
    sharded = sizes(plan(medium, topology=Topology(8, sharded=True)))
    assert sharded["gathered"] == 4 * (outside + 3 * in_blocks // 24)


def test_an_average_is_of_parameters(medium):
    """`MovingAverage` holds what is trained; its export takes the position table from the student."""
    found = sizes(plan(medium, "--ema_decay", "0.99"))
    assert found["student, average"] == found["student, gradients"]
    lora = sizes(plan(medium, "--ema_decay", "0.99", "--lora_rank", "64"))
    assert lora["student, average"] == lora["student, adapter"]


def test_the_topology_is_what_the_launcher_says(monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    assert Topology.from_environment() == Topology(1, False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Topology.from_environment() == Topology(8, True)


def test_the_goals_of_sd35_medium(medium):
    """LoRA at batch 1 in 16 GB, both networks whole at batch 4 in the 141 GB of one H200."""
    lora = plan(medium, "--lora_rank", "64", "--batch_size", "1", "--cache_text_embeddings", "cache", "--offload_vae")
    assert lora.total < 16e9
    assert plan(medium, "--batch_size", "4").total < 141e9


def test_auto_recomputes_as_few_blocks_as_fit(medium):
    """Where none has to, none; one block fewer would not fit; where nothing helps, or there is no GPU, all."""

    def chosen(gigabytes: float | None) -> str:
        device = None if gigabytes is None else int(gigabytes * 1e9)
        return fewest_recomputed_blocks(plan_config(medium), NO_EVALUATION, Topology(), device)

    none, every = (plan(medium, "--recomputed_blocks", count).total / 1e9 for count in ("0", "all"))
    count = int(chosen((none + every) / 2))
    assert (chosen(none + 1), chosen(every - 1), chosen(None)) == ("0", "all", "all") and 0 < count < 24
    few, fewer = (
        plan(medium, "--recomputed_blocks", str(n), device=int((none + every) / 2e-9)) for n in (count, count - 1)
    )
    assert few.fits and not fewer.fits


def test_only_the_largest_phase_counts_and_a_device_too_small_is_told():
    rows = (
        MemoryItem("a", 3, "", flags=("--x",)),
        MemoryItem("b", 5, "", (STUDENT,), ("--y",)),
        MemoryItem("c", 4, "", (IMAGES,)),
    )
    planned = MemoryEstimate(rows, device=7)
    assert (planned.peak, planned.total, planned.fits) == (STUDENT, 8, False)
    assert "b 0.0 GB, a 0.0 GB; these lower them: --y, --x" in planned.warnings()[0]
    assert MemoryEstimate(rows, device=8).warnings() == [] == MemoryEstimate(rows, device=None).warnings()


def test_a_family_that_does_not_count_says_so(medium, monkeypatch):
    silent = LAYOUTS["sd35"]
    monkeypatch.setitem(LAYOUTS, "sd35", type(silent)(**{**vars(silent), "call_memory": None}))
    planned = plan(medium)
    assert "not known  activations" in planned.table() and planned.summary().startswith("at least ")
    assert options.ModelConfig().family == "sd35"


def test_the_scorers_row_is_what_they_load(tiny_scorers):
    """Diversity by CLIP looks at images alone, and loads no more of the model than that."""
    scorers = ("div_clip", "div_dino", "pickscore", "clip_score")
    paths = check_scorer_paths(tiny_scorers, scorers)
    for name in scorers:
        network = build_scorer(name, paths[name], torch.device("cpu")).network
        loaded = 4 * sum(parameter.numel() for parameter in network.parameters())
        assert scorer_bytes(name, paths[name]) == loaded, name
