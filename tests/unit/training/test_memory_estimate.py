"""The estimate of device memory: what each item counts, sums, warnings and advice."""

import math
import os
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from dpdmd import config
from dpdmd.config import options
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.models.activation_memory import CallShape, decode_bytes
from dpdmd.models.layout import count_numbers
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sd35.official import OFFICIAL
from dpdmd.training import checkpoint
from dpdmd.training.memory_estimate import MemoryEstimate, estimate_memory, fewest_recomputed_blocks, machine_warnings
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


def medium_config(medium: Path, *flags: str) -> config.Config:
    return config.parse(["--teacher_id", str(medium), "--bf16", "--gradient_checkpointing", *flags])


def estimate(medium: Path, *flags: str, topology: Topology | None = None, device: int | None = None) -> MemoryEstimate:
    return estimate_memory(medium_config(medium, *flags), NO_EVALUATION, topology or Topology(), device)


def sizes(estimated: MemoryEstimate) -> dict[str, int]:
    return {item.name: item.bytes for item in estimated.items if item.phases != (FAKE,)}


def test_weights_gradients_and_moments_are_counted_by_number(medium):
    """2,243.2 M trained numbers, and 226.5 M of a position table that is no parameter."""
    found, trained, table = sizes(estimate(medium)), LAYOUTS["sd35"].count_trained(medium), 384 * 384 * 1536
    assert LAYOUTS["sd35"].count_parameters(medium) == trained + table
    assert found["teacher"] == 2 * (trained + table)
    assert found["student, master weights"] == 4 * (trained + table)
    assert found["student, gradients"] == 4 * trained
    assert found["student, optimizer"] == found["fake score, optimizer"] == 8 * trained


@pytest.mark.parametrize(("flags", "moments"), [([], 8), (["--optimizer", "adamw_8bit"], 2 * (1 + 4 / 256))])
def test_a_checkpoint_holds_moments_of_what_is_trained_alone(medium, flags, moments):
    """55.6 GB with AdamW, 28.9 with 8 bits; a moving average is one more export."""
    trained, whole = LAYOUTS["sd35"].count_trained(medium), LAYOUTS["sd35"].count_parameters(medium)
    config, averaged = medium_config(medium, *flags), medium_config(medium, *flags, "--ema_decay", "0.99")
    assert checkpoint.size_in_bytes(config) == int(2 * 4 * whole + 2 * moments * trained)
    assert checkpoint.size_in_bytes(averaged) == checkpoint.size_in_bytes(config) + 4 * whole


@pytest.mark.parametrize("flags", [(), ("--ema_decay", "0.99"), ("--optimizer", "adamw_8bit")])
def test_on_a_cpu_a_checkpoint_is_a_copy_of_what_it_holds(medium, flags):
    copied = "a checkpoint's copy"
    whole = medium_config(medium, *flags)
    assert sizes(estimate_memory(whole, NO_EVALUATION, Topology(), on_gpu=False))[copied] == checkpoint.size_in_bytes(
        whole
    )
    lora = sizes(
        estimate_memory(medium_config(medium, *flags, "--lora_rank", "64"), NO_EVALUATION, Topology(), on_gpu=False)
    )
    each, moments = lora["student, adapter"], lora["student, optimizer"]
    assert lora[copied] == (3 if "--ema_decay" in flags else 2) * each + 2 * moments
    assert copied not in sizes(estimate(medium, *flags))


def test_lora_has_one_base_and_small_adapters(medium):
    found, whole = sizes(estimate(medium, "--lora_rank", "64")), LAYOUTS["sd35"].count_parameters(medium)
    assert found["teacher, the base of all three"] == 2 * whole
    assert found["student, adapter"] < 0.05 * 4 * whole
    assert "student, master weights" not in found


@pytest.mark.parametrize(("precision", "each"), [("fp8", 1), ("int8", 1), ("nf4", 0.5 + 4 / 64)])
def test_a_quantised_base_keeps_its_linear_layers_in_fewer_bytes(medium, precision, each):
    """2,189 M of 2,243 M trained numbers are in linear layers of the blocks; nf4 has a scale for each 64 numbers."""
    layout, flags = LAYOUTS["sd35"], ["--lora_rank", "64", "--base_precision", precision]
    shapes, whole = layout.linear_of_blocks(medium, "transformer"), layout.count_parameters(medium)
    linear, outputs = count_numbers(shapes), sum(shape[0] for shape in shapes.values())
    scales = 0 if precision == "nf4" else 4 * outputs
    found = sizes(estimate(medium, *flags))
    assert found["teacher, the base of all three"] == linear * each + scales + 2 * (whole - linear)
    assert linear > 0.97 * layout.count_trained(medium)
    assert found["a dequantised weight"] == 6 * max(map(math.prod, shapes.values()))


def test_quantised_text_encoders(medium):
    """T5's embedding, CLIPs' and layers outside of blocks stay in bf16; T5's table of distances is no linear layer."""
    before, after = (
        sizes(estimate(medium, "--cache_text_embeddings", "cache", "--text_encoder_precision", precision))
        for precision in ("bf16", "int8")
    )
    shapes = LAYOUTS["sd35"].linear_of_blocks(medium, "text_encoder_3")
    assert len(shapes) == 24 * (4 + 3) and not any("relative" in name for name in shapes)
    assert 0.5 < after["text encoders"] / before["text encoders"] < 0.56


@pytest.mark.parametrize(
    ("flags", "item", "falls"),
    [
        (["--batch_size", "2"], "student, graphs", 0.5),
        (["--stu_inference_steps", "2"], "student, graphs", 0.5),
        (["--optimizer", "adamw_8bit"], "student, optimizer", 0.25),
        (["--height", "512"], "student, graphs", 0.52),
    ],
)
def test_a_flag_lowers_its_item(medium, flags, item, falls):
    before, after = sizes(estimate(medium))[item], sizes(estimate(medium, *flags))[item]
    assert after / before == pytest.approx(falls, rel=0.05)


def test_a_discriminator_has_a_graph_of_its_own(medium):
    """Through the fake score, whose blocks are recomputed, or the teacher, whose are not."""
    plain, fake, teacher = (
        sizes(estimate(medium, "--method", "dmd", *flags))["at work"]
        for flags in ([], ["--method", "dmd_gan"], ["--method", "dmd_gan", "--gan_features", "teacher"])
    )
    call = LAYOUTS["sd35"].memory_of_call(medium, CallShape(4, 1024, 1024, 77 + 256, True, True))
    assert plain < fake == call.kept(24) + call.working(24) < teacher == call.kept(0) + call.working(0)


def test_guidance_of_either_role_doubles_the_teachers_rows(medium):
    """Both off: batch 4. Guidance in the DMD loss alone, or at the anchor alone: both branches, 8 rows."""

    def working(*flags: str) -> str:
        items = estimate(medium, *flags).items
        return next(item.formula for item in items if item.name == "at work" and item.phases == (STUDENT,))

    off = ("--teacher_guidance_scale", "1")
    assert "4 rows of the teacher" in working(*off)
    assert all("8 rows of the teacher" in working(*flags) for flags in ((), (*off, "--real_guidance_scale", "5")))


def test_what_is_offloaded_or_encoded_ahead_is_not_there_in_an_update(medium):
    """Its item stays, in the phase that needs it."""
    before, after = estimate(medium), estimate(medium, "--cache_text_embeddings", "cache", "--offload_vae")
    freed = sizes(before)["text encoders"] + sizes(before)["autoencoder"]
    assert before.bytes_in_phase(STUDENT) - after.bytes_in_phase(STUDENT) == freed
    assert before.bytes_in_phase(IMAGES) > after.bytes_in_phase(IMAGES)
    assert after.bytes_in_phase(ENCODING) > sizes(before)["text encoders"]


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (["--method", "dpdmd"], 3),
        (["--method", "dmd_gan"], 3),  # its fake-score update has the teacher's samples
        (["--method", "dmd_lpips", "--perceptual_path", "weights"], 4),
    ],
)
@pytest.mark.parametrize(("batch", "columns"), [(2, 2), (16, 8)])
def test_images_of_a_student_update_are_decoded_together(medium, flags, kinds, batch, columns):
    found = sizes(estimate(medium, "--batch_size", str(batch), *flags))["making images"]
    assert found == kinds * columns * decode_bytes(OFFICIAL["vae"], 1024 * 1024, True)


def test_sharding_divides_and_ddp_adds_buckets(medium):
    """Parameters are divided; the position table, a buffer, is whole on each process, in each network."""
    alone, table = sizes(estimate(medium)), 384 * 384 * 1536
    sharded = sizes(estimate(medium, topology=Topology(8, sharded=True)))
    replicated = sizes(estimate(medium, topology=Topology(8)))
    for name in ("student, gradients", "student, optimizer"):
        assert sharded[name] == alone[name] // 8 and replicated[name] == alone[name]
    masters = "student, master weights"
    assert replicated[masters] == alone[masters]
    assert sharded[masters] == (alone[masters] - 4 * table) // 8 + 4 * table
    assert sharded["teacher"] == alone["teacher"]
    frozen = sizes(estimate(medium, "--shard_teacher", topology=Topology(8, sharded=True)))["teacher"]
    assert frozen == (alone["teacher"] - 2 * table) // 8 + 2 * table
    assert replicated["student, DDP's buckets"] == alone["student, gradients"]


def test_with_lora_sharding_divides_the_base_alone(medium):
    """Adapters are whole on each process, as under DDP; of the base, two blocks are gathered in bf16, no gradients."""
    alone, table = sizes(estimate(medium, "--lora_rank", "64")), 384 * 384 * 1536
    sharded = sizes(estimate(medium, "--lora_rank", "64", topology=Topology(8, sharded=True)))
    replicated = sizes(estimate(medium, "--lora_rank", "64", topology=Topology(8)))
    base = "teacher, the base of all three"
    assert sharded.pop(base) == (alone[base] - 2 * table) // 8 + 2 * table
    assert replicated.pop(base) == alone[base]
    gathered, whole = sharded.pop("gathered"), sizes(estimate(medium, topology=Topology(8, sharded=True)))["gathered"]
    assert sharded == replicated and sharded["student, DDP's buckets"] == sharded["student, adapter"]
    in_blocks = LAYOUTS["sd35"].count_trained(medium) - outside_blocks(medium)
    assert gathered == 2 * (outside_blocks(medium) + 2 * in_blocks // 24) < whole / 2


def outside_blocks(medium: Path) -> int:
    with torch.device("meta"):
        network = SD3Transformer2DModel(**OFFICIAL["transformer"])
    return sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.transformer_blocks.parameters()
    )


def test_what_is_gathered_is_parameters(medium):
    """Those in no block, of SD3.5-M 19.5 M, and three blocks of the mean 92.7 M; the buffer is counted where it is."""
    outside = outside_blocks(medium)
    in_blocks = LAYOUTS["sd35"].count_trained(medium) - outside
    sharded = sizes(estimate(medium, topology=Topology(8, sharded=True)))
    assert sharded["gathered"] == 4 * (outside + 3 * in_blocks // 24)


def test_an_average_is_of_parameters(medium):
    """`MovingAverage` holds what is trained; its export takes the position table from the student."""
    found = sizes(estimate(medium, "--ema_decay", "0.99"))
    assert found["student, average"] == found["student, gradients"]
    lora = sizes(estimate(medium, "--ema_decay", "0.99", "--lora_rank", "64"))
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
    lora = estimate(
        medium, "--lora_rank", "64", "--batch_size", "1", "--cache_text_embeddings", "cache", "--offload_vae"
    )
    assert lora.total < 16e9
    assert estimate(medium, "--batch_size", "4").total < 141e9


def test_auto_recomputes_as_few_blocks_as_fit(medium):
    """Where none has to, none; one block fewer would not fit; where nothing helps, or there is no GPU, all."""

    def chosen(gigabytes: float | None) -> str:
        device = None if gigabytes is None else int(gigabytes * 1e9)
        return fewest_recomputed_blocks(medium_config(medium), NO_EVALUATION, Topology(), device)

    none, every = (estimate(medium, "--recomputed_blocks", count).total / 1e9 for count in ("0", "all"))
    count = int(chosen((none + every) / 2))
    assert (chosen(none + 1), chosen(every - 1), chosen(None)) == ("0", "all", "all") and 0 < count < 24
    few, fewer = (
        estimate(medium, "--recomputed_blocks", str(n), device=int((none + every) / 2e-9)) for n in (count, count - 1)
    )
    assert few.fits and not fewer.fits


@pytest.mark.parametrize(
    ("flags", "processes", "each"),
    [
        ([], 8, 64),  # the student and the fake score in fp32
        ([], 1, 24),  # both and their moments, copied for a checkpoint
        (["--lora_rank", "4"], 8, 16),  # the base in bf16
    ],
)
def test_a_machine_too_small_for_what_its_processes_load_or_copy_gives_a_warning(
    medium, monkeypatch, flags, processes, each
):
    needed = each * LAYOUTS["sd35"].count_parameters(medium)
    for part, warns in ((0.9, True), (1.01, False)):
        monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": int(part * needed), "SC_PAGE_SIZE": 1}.get)
        found = machine_warnings(medium_config(medium, *flags), processes)
        assert bool(found) == warns and all("the system may kill the run" in line for line in found)


def test_only_the_largest_phase_counts_and_a_device_too_small_gives_a_warning():
    items = (
        MemoryItem("a", 3, "", flags=("--x",)),
        MemoryItem("b", 5, "", (STUDENT,), ("--y",)),
        MemoryItem("c", 4, "", (IMAGES,)),
    )
    estimated = MemoryEstimate(items, device=7)
    assert (estimated.peak, estimated.total, estimated.fits) == (STUDENT, 8, False)
    assert "b 0.0 GB, a 0.0 GB; these lower them: --y, --x" in estimated.warnings()[0]
    assert MemoryEstimate(items, device=8).warnings() == [] == MemoryEstimate(items, device=None).warnings()


def test_a_family_that_does_not_count_says_so(medium, monkeypatch):
    silent = LAYOUTS["sd35"]
    monkeypatch.setitem(LAYOUTS, "sd35", type(silent)(**{**vars(silent), "call_memory": None}))
    estimated = estimate(medium)
    assert "not known  activations" in estimated.table() and estimated.summary().startswith("estimated at least ")
    assert options.ModelConfig().family == "sd35"


def test_the_scorers_item_is_what_they_load(tiny_scorers):
    """Diversity by CLIP loads only the image tower."""
    scorers = ("div_clip", "div_dino", "pickscore", "clip_score")
    paths = check_scorer_paths(tiny_scorers, scorers)
    for name in scorers:
        network = build_scorer(name, paths[name], torch.device("cpu")).network
        loaded = 4 * sum(parameter.numel() for parameter in network.parameters())
        assert scorer_bytes(name, paths[name]) == loaded, name


def test_an_open_clip_with_weights_in_several_forms_counts_once(tmp_path):
    """By the file that OpenCLIP reads."""
    (tmp_path / "open_clip_config.json").write_text("{}")
    for size, ending in ((30, "pth"), (20, "bin"), (10, "safetensors")):
        (tmp_path / f"open_clip_pytorch_model.{ending}").write_bytes(b"0" * size)
        assert scorer_bytes("clip_score", {"clip_score_path": tmp_path}) == size
