"""The items of a memory estimate: what a process keeps on its device, each use with its formula.

Counted from the configuration, the models' small files and the headers of their weights. The sizes are bytes of
tensors; convolution workspaces and the allocator's fragments come on top.
"""

from dataclasses import dataclass
from pathlib import Path

from dpdmd.config import Config
from dpdmd.config.method_table import DISCRIMINATOR, METHODS
from dpdmd.distributed.launch_env import is_on, read_launch
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.evaluation.scorer_memory import scorer_bytes
from dpdmd.methods import registry
from dpdmd.models.activation_memory import BF16, FP32, CallMemory, CallShape
from dpdmd.models.layout import Layout, count_numbers
from dpdmd.models.memory_estimate import MemoryItem, libraries
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.weight_files import read_weight_shapes
from dpdmd.training.optimizers import bytes_of_moments
from dpdmd.utils.text_files import read_json

ENCODING, FAKE, STUDENT, IMAGES = ("encoding ahead", "fake-score update", "student update", "images")
UPDATES, LOADED = (FAKE, STUDENT), (FAKE, STUDENT, IMAGES)
MAX_IMAGES = 8  # in process_vis


@dataclass(frozen=True)
class Topology:
    """The number of processes of a run, and whether weights are sharded over them."""

    processes: int = 1
    sharded: bool = False

    @staticmethod
    def from_environment() -> "Topology":
        """Read the topology from the launcher's environment, before accelerate starts."""
        return Topology(read_launch().processes, is_on("ACCELERATE_USE_FSDP"))


def memory_items(config: Config, evaluation: EvalSetup, topology: Topology, *, on_gpu: bool = True) -> list[MemoryItem]:
    """List every use of memory of one process; uses of 0 bytes are left out."""
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    items = [
        *_weights(config, layout, teacher, topology),
        *_other_models(config, layout, teacher, evaluation),
        *_updates(config, layout, teacher),
        *_images(config, layout, teacher, evaluation),
        *([] if on_gpu else [checkpoint_item(config)]),
        libraries(on_gpu),
    ]
    return [item for item in items if item.bytes is None or item.bytes > 0]


def checkpoint_item(config: Config) -> MemoryItem:
    """Count the copy of all weights and moments from which a checkpoint is written while training goes on.

    It lies on the CPU.
    """
    numbers, moments = count_state(config)
    averaged = numbers["student"] if config.optim.ema_decay is not None else 0
    copied = (sum(numbers.values()) + averaged) * FP32 + moments
    return MemoryItem("a checkpoint's copy", copied, "weights and moments, until they are written", UPDATES)


def doctor_item(config: Config) -> MemoryItem:
    """Count what the doctor keeps on the CPU beside a checkpoint's copy while it runs steps twice.

    The weights after the first time, and one network's after the second.
    """
    numbers, _ = count_state(config)
    copied = (sum(numbers.values()) + max(numbers.values())) * FP32
    return MemoryItem("the doctor's copies", copied, "the networks after its steps", UPDATES)


def count_state(config: Config) -> tuple[dict[str, int], int]:
    """Return the numbers of each trained network in a checkpoint, and the bytes of all moments.

    Buffers such as SD3's position table have no moments. A discriminator's heads are too small to count.
    """
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    buffers = 0 if config.model.lora_rank else layout.count_parameters(teacher) - layout.count_trained(teacher)
    trained = _trained(config, layout, teacher)
    moments = int(sum(trained.values()) * bytes_of_moments(config.optim))
    return {name: numbers + buffers for name, numbers in trained.items()}, moments


def _number(config: Config) -> tuple[int, str]:
    """Return the bytes of a number in the compute type, and the name of that type."""
    return (BF16, "bf16") if config.optim.bf16 else (FP32, "fp32")


def _trained(config: Config, layout: Layout, teacher: Path) -> dict[str, int]:
    """Return how many numbers an update of each trained network changes."""
    if pair := adapters(config.model):
        parts = {"student": pair.student, "fake score": pair.fake}
        return {name: layout.count_adapter_parameters(teacher, part.targets, part.rank) for name, part in parts.items()}
    return dict.fromkeys(("student", "fake score"), layout.count_trained(teacher))


def _weights(config: Config, layout: Layout, teacher: Path, topology: Topology) -> list[MemoryItem]:
    """Count weights, gradients and moments: divided over processes if they are sharded, except buffers.

    With LoRA only the frozen base is sharded.
    """
    whole, trained = layout.count_parameters(teacher), _trained(config, layout, teacher)
    buffers = layout.count_buffers(teacher)
    number, kind = _number(config)
    lora, processes = config.model.lora_rank is not None, topology.processes if topology.sharded else 1
    frozen = processes if config.optim.shard_teacher or lora else 1
    shards = 1 if lora else processes
    share = _over(shards)
    base = "teacher, the base of all three" if lora else "teacher"
    smaller = () if lora else ("--lora_rank", f"sharding by scripts/accelerate_{config.model.family}_fsdp.yaml")
    precision = config.model.base_precision
    weights = layout.weight_bytes(teacher, (layout.network,), precision, number)
    held = (weights.held - buffers * number) // frozen + buffers * number
    what = f"{weights.described(kind, precision)}{_over(frozen, buffers)}"
    lowering = (*_bf16_flag(config), *(("--base_precision",) if lora and not weights.quantized else ()))
    items = [
        MemoryItem(base, held, what, LOADED, lowering),
        MemoryItem("a dequantised weight", weights.at_work, "the largest, in fp32 and in its own type", LOADED),
    ]
    moment_flags = smaller if config.optim.optimizer == "adamw_8bit" else ("--optimizer adamw_8bit", *smaller)
    moment = bytes_of_moments(config.optim)
    for (name, numbers), phase in zip(trained.items(), (STUDENT, FAKE), strict=True):
        besides, weights = (0, numbers) if lora else (buffers, whole - buffers)
        masters = f"{(weights + besides) / 1e6:.1f} M in fp32{_over(shards, besides)}"
        what = "adapter" if lora else "master weights"
        count = f"{numbers / 1e6:.1f} M numbers"
        items += [
            MemoryItem(f"{name}, {what}", weights * FP32 // shards + besides * FP32, masters, LOADED, smaller),
            MemoryItem(
                f"{name}, gradients", numbers * FP32 // shards, f"{count} in fp32{share}", (phase,), flags=smaller
            ),
            MemoryItem(
                f"{name}, optimizer",
                int(numbers * moment) // shards,
                f"{count} x {moment:.3g} bytes, two moments{share}",
                LOADED,
                moment_flags,
            ),
        ]
        if topology.processes > 1 and (lora or not topology.sharded):
            items.append(MemoryItem(f"{name}, DDP's buckets", numbers * FP32, f"{count} in fp32", LOADED, smaller))
    if config.optim.ema_decay is not None:
        averaged = trained["student"]
        items.append(
            MemoryItem(
                "student, average", averaged * FP32 // shards, f"{averaged / 1e6:.1f} M in fp32{share}", LOADED, smaller
            )
        )
    if processes > 1:
        items.append(_gathered(config, layout, teacher))
    return items


def _over(processes: int, whole: int = 0) -> str:
    """Say over how many processes numbers are divided; `whole` of them are on each process."""
    if processes == 1:
        return ""
    return f" / {processes} processes" + (f", {whole / 1e6:.1f} M of them on each" if whole else "")


def _gathered(config: Config, layout: Layout, teacher: Path) -> MemoryItem:
    """Count what a sharded network has unsharded at a time, beside its buffers, which are never sharded."""
    shapes = read_weight_shapes(teacher / layout.network)
    prefixes = layout.block_prefixes(teacher)
    in_blocks = count_numbers({name: shape for name, shape in shapes.items() if name.startswith(prefixes)})
    blocks = layout.count_blocks(teacher)
    outside = layout.count_parameters(teacher) - layout.count_buffers(teacher) - in_blocks
    if config.model.lora_rank is None:
        copies, what, (number, kind) = 3, "this block, the next, one block's gradients", (FP32, "fp32")
    else:  # a frozen base has no gradients
        copies, what, (number, kind) = 2, "this block, the next", _number(config)
    numbers = outside + copies * in_blocks // blocks
    return MemoryItem("gathered", numbers * number, f"{what}, and layers outside blocks, in {kind}", LOADED)


def _bf16_flag(config: Config) -> tuple[str, ...]:
    return () if config.optim.bf16 else ("--bf16",)


def _other_models(config: Config, layout: Layout, teacher: Path, evaluation: EvalSetup) -> list[MemoryItem]:
    """Count text encoders, autoencoder and scorers."""
    number, kind = _number(config)
    encoders = layout.text_encoders(teacher, no_t5=config.model.no_t5)
    precision = config.model.text_encoder_precision
    text = layout.weight_bytes(teacher, encoders, precision, number)
    cached = bool(config.data.cache_text_embeddings)
    vae = count_numbers(read_weight_shapes(teacher / "vae"))
    vae_offloaded, scorers_offloaded = config.optim.offload_vae, config.eval.offload_scorers
    scorers = sum(scorer_bytes(name, paths) for name, paths in evaluation.paths.items())
    return [
        MemoryItem(
            "text encoders",
            text.held + text.at_work,
            text.described(kind, precision) + (", deleted before the networks load" if cached else ""),
            (ENCODING,) if cached else LOADED,
            flags=(
                *(_bf16_flag(config) if cached else ("--cache_text_embeddings",)),
                *(() if text.quantized else ("--text_encoder_precision",)),
            ),
        ),
        MemoryItem(
            "autoencoder",
            vae * number,
            f"{vae / 1e6:.1f} M numbers in {kind}",
            (IMAGES,) if vae_offloaded else LOADED,
            flags=() if vae_offloaded else ("--offload_vae",),
        ),
        MemoryItem(
            "scorers",
            scorers,
            "weights in fp32",
            (IMAGES,) if scorers_offloaded else LOADED,
            flags=() if scorers_offloaded else ("--offload_scorers",),
        ),
    ]


def _call(config: Config, layout: Layout, teacher: Path, batch: int, *, trained: bool) -> CallMemory | None:
    """Return the memory of a call on `batch` rows: of a trained network (whole or with adapters) or the teacher."""
    data = config.data
    tokens = layout.text_tokens(teacher, data.max_sequence_length or layout.defaults.max_sequence_length)
    rank = config.model.lora_rank if trained else None
    casts = trained and rank is None
    dropout = trained and config.model.lora_dropout > 0
    shape = CallShape(batch, data.height, data.width, tokens, config.optim.bf16, casts, rank, dropout)
    return layout.memory_of_call(teacher, shape)


def _updates(config: Config, layout: Layout, teacher: Path) -> list[MemoryItem]:
    """Count the graphs that are kept for a backward pass, and the most that is in use beside them."""
    batch, calls = config.optim.batch_size, config.method.stu_inference_steps
    scales = {config.method.teacher_guidance_scale, config.method.real_guidance_scale} - {None}
    guided = max(map(layout.guidance.rows, scales))
    call = _call(config, layout, teacher, batch, trained=True)
    teacher_call = _call(config, layout, teacher, guided * batch, trained=False)
    recomputed = _recomputed_blocks(config, layout, teacher)
    flags = ("--batch_size (and --grad_accum)", *_more_recomputed(config))
    if call is None or teacher_call is None:
        return [MemoryItem("activations", None, "this family does not count them", UPDATES, flags)]
    kept, backward = call.kept(recomputed), call.working(recomputed)
    how = f"the inputs of {recomputed} blocks and all activations of {len(call.blocks) - recomputed}"
    working = "one block recomputed" if recomputed else "one feed-forward's gradients"
    beside_student = {
        working: backward,
        f"{guided * batch} rows of the teacher without a graph": teacher_call.passing,
        **_discriminator(config, call, recomputed),
    }
    return [
        MemoryItem("student, graphs", calls * kept, f"{calls} calls x batch {batch}, {how}", (STUDENT,), flags),
        MemoryItem("fake score, graph", kept, f"1 call x batch {batch}, {how}", (FAKE,), flags),
        MemoryItem(
            "at work", max(beside_student.values()), f"the largest of {', '.join(beside_student)}", (STUDENT,), flags
        ),
        MemoryItem(
            "at work", max(backward, call.passing), f"the larger of {working} and a roll-out's call", (FAKE,), flags
        ),
        *_perceptual(config),
    ]


def _recomputed_blocks(config: Config, layout: Layout, teacher: Path) -> int:
    count, wanted = layout.count_blocks(teacher), config.optim.recomputed_blocks
    if not config.optim.gradient_checkpointing:
        return 0
    return count if wanted == "all" else min(count, int(wanted))


def _more_recomputed(config: Config) -> tuple[str, ...]:
    """Return the flag that recomputes more blocks, if there is one."""
    if not config.optim.gradient_checkpointing:
        return ("--gradient_checkpointing",)
    return () if config.optim.recomputed_blocks == "all" else ("--recomputed_blocks all",)


def _discriminator(config: Config, call: CallMemory, recomputed: int) -> dict[str, int]:
    """Count the generator loss: its own graph, through the network whose features the discriminator reads."""
    if DISCRIMINATOR not in registry.trained_networks(config.method):
        return {}
    recomputes = (
        config.method.gan_features == "fake" or config.model.lora_rank is not None
    )  # a separate teacher does not
    recomputed = recomputed if recomputes else 0
    return {"the discriminator's features, with their graph": call.kept(recomputed) + call.working(recomputed)}


def _perceptual(config: Config) -> list[MemoryItem]:
    """Count what a comparison of images keeps beside the student's graphs."""
    if config.method.perceptual_path is None:
        return []
    return [MemoryItem("perceptual loss", None, "one image decoded and compared, with its graph", (STUDENT,))]


def _images(config: Config, layout: Layout, teacher: Path, evaluation: EvalSetup) -> list[MemoryItem]:
    """Count sampling for an evaluation, and decoding: process_vis shows student, x0_real and x0_fake, and a teacher
    sample if the student update has one."""
    evaluated = config.eval.eval_batch_size if evaluation.sets else 0
    rows = layout.guidance.rows(config.method.teacher_guidance_scale) * evaluated
    kinds = 4 if METHODS[config.method.method].teacher_samples_in == registry.STUDENT else 3
    shown = kinds * min(MAX_IMAGES, config.optim.batch_size) if config.run.vis_every else 0
    decoded = min(1, shown + evaluated) if config.optim.offload_vae else max(shown, evaluated)
    pixels, (_, kind) = config.data.height * config.data.width, _number(config)
    one = layout.autoencoder.decode_bytes(read_json(teacher / "vae" / "config.json"), pixels, config.optim.bf16)
    sampled = _call(config, layout, teacher, rows, trained=False) if evaluated else None
    sampling = sampled.passing if sampled else 0
    return [
        MemoryItem(
            "making images",
            max(decoded * one, sampling),
            f"the larger of decoding {decoded} at a time in {kind} and {rows} rows of the teacher",
            (IMAGES,),
            ("--eval_batch_size",) if config.optim.offload_vae else ("--offload_vae", "--eval_batch_size"),
        )
    ]
