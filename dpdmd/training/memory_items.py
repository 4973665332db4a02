"""The rows of a memory plan: what a process keeps on its device, each use with its formula.

Counted from the configuration and the small files of the weights alone. Figures are bytes of tensors; what a library's
convolution workspace or the allocator's fragments take comes on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpdmd.config import Config
from dpdmd.config.method_table import DISCRIMINATOR, METHODS
from dpdmd.config.scorer_table import SCORERS
from dpdmd.distributed.launch_env import is_on, read_launch
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.methods import registry
from dpdmd.models.activation_memory import BF16, FP32, CallMemory, CallShape, decode_bytes
from dpdmd.models.layout import Layout, count_numbers
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.weight_files import read_weight_shapes
from dpdmd.training.optimizers import bytes_of_moments
from dpdmd.utils.text_files import read_json

ENCODING, FAKE, STUDENT, IMAGES = PHASES = ("encoding ahead", "fake turn", "student turn", "images")
TURNS, LOADED = (FAKE, STUDENT), (FAKE, STUDENT, IMAGES)
MAX_IMAGES = 8  # in process_vis
CONTEXT = 600_000_000  # CUDA's own context and libraries on a data-centre card: an assumption, the only one


@dataclass(frozen=True)
class Topology:
    """Over how many processes a run is spread, and whether weights are sharded over them."""

    processes: int = 1
    sharded: bool = False

    @staticmethod
    def from_environment() -> "Topology":
        """What the launcher says: accelerate itself is not up yet."""
        return Topology(read_launch().processes, is_on("ACCELERATE_USE_FSDP"))


@dataclass(frozen=True)
class MemoryItem:
    """One use of memory.

    Attributes:
        bytes: None where the family does not know.
        formula: how they are counted.
        phases: when they are there.
        flags: what lowers them.
    """

    name: str
    bytes: int | None
    formula: str
    phases: tuple[str, ...] = LOADED
    flags: tuple[str, ...] = ()


def memory_items(config: Config, evaluation: EvalSetup, topology: Topology) -> list[MemoryItem]:
    """All rows of one process, those that take nothing left out."""
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    rows = [
        *_weights(config, layout, teacher, topology),
        *_beside(config, layout, teacher, evaluation),
        *_turns(config, layout, teacher),
        *_images(config, layout, teacher, evaluation),
        MemoryItem("CUDA", CONTEXT, "context and libraries, assumed", PHASES),
    ]
    return [row for row in rows if row.bytes is None or row.bytes > 0]


def _number(config: Config) -> tuple[int, str]:
    """Bytes of a number in the compute type, and its name."""
    return (BF16, "bf16") if config.optim.bf16 else (FP32, "fp32")


def _trained(config: Config, layout: Layout, teacher: Path) -> dict[str, int]:
    """Numbers that each trained network updates."""
    if pair := adapters(config.model):
        parts = {"student": pair.student, "fake score": pair.fake}
        return {name: layout.count_adapter_parameters(teacher, part.targets, part.rank) for name, part in parts.items()}
    return dict.fromkeys(("student", "fake score"), layout.count_trained(teacher))


def _weights(config: Config, layout: Layout, teacher: Path, topology: Topology) -> list[MemoryItem]:
    """Weights, gradients and moments, divided over processes where they are sharded; buffers are on each of them."""
    whole, trained = layout.count_parameters(teacher), _trained(config, layout, teacher)
    buffers = whole - layout.count_trained(teacher)
    number, kind = _number(config)
    shards = topology.processes if topology.sharded else 1
    share, lora = _over(shards), config.model.lora_rank is not None
    frozen = shards if config.optim.shard_teacher else 1
    base = "teacher, the base of all three" if lora else "teacher"
    smaller = () if lora else ("--lora_rank", "sharding by scripts/accelerate_sd35_fsdp.yaml")
    held = (whole - buffers) * number // frozen + buffers * number
    rows = [
        MemoryItem(base, held, f"{whole / 1e6:.1f} M numbers in {kind}{_over(frozen, buffers)}", flags=_bf16(config))
    ]
    eight = config.optim.optimizer == "adamw_8bit"
    moment = bytes_of_moments(config.optim)
    for (name, numbers), phase in zip(trained.items(), (STUDENT, FAKE), strict=True):
        besides = 0 if lora else buffers
        masters = f"{(numbers + besides) / 1e6:.1f} M in fp32{_over(shards, besides)}"
        what = "adapter" if lora else "master weights"
        count = f"{numbers / 1e6:.1f} M numbers"
        rows += [
            MemoryItem(f"{name}, {what}", numbers * FP32 // shards + besides * FP32, masters, flags=smaller),
            MemoryItem(
                f"{name}, gradients", numbers * FP32 // shards, f"{count} in fp32{share}", (phase,), flags=smaller
            ),
            MemoryItem(
                f"{name}, optimizer",
                int(numbers * moment) // shards,
                f"{count} x {moment:.3g} bytes, two moments{share}",
                flags=smaller if eight else ("--optimizer adamw_8bit", *smaller),
            ),
        ]
        if topology.processes > 1 and not topology.sharded:
            rows.append(MemoryItem(f"{name}, DDP's buckets", numbers * FP32, f"{count} in fp32", flags=smaller))
    if config.optim.ema_decay is not None:
        averaged = trained["student"]
        rows.append(
            MemoryItem(
                "student, average", averaged * FP32 // shards, f"{averaged / 1e6:.1f} M in fp32{share}", flags=smaller
            )
        )
    if shards > 1:
        rows.append(_gathered(layout, teacher))
    return rows


def _over(processes: int, whole: int = 0) -> str:
    """How a row's numbers are divided, `whole` of them not, in words."""
    if processes == 1:
        return ""
    return f" / {processes} processes" + (f", {whole / 1e6:.1f} M of them on each" if whole else "")


def _gathered(layout: Layout, teacher: Path) -> MemoryItem:
    """What a sharded network has whole at a time, beside its buffers, which are never sharded."""
    shapes = read_weight_shapes(teacher / layout.network)
    prefix, _ = layout.blocks
    in_blocks = count_numbers({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
    blocks = layout.count_blocks(teacher)
    outside = layout.count_trained(teacher) - in_blocks
    numbers = outside + 3 * in_blocks // blocks
    return MemoryItem(
        "gathered", numbers * FP32, "this block, the next, one block's gradients, and what is in none, in fp32"
    )


def _bf16(config: Config) -> tuple[str, ...]:
    return () if config.optim.bf16 else ("--bf16",)


def _beside(config: Config, layout: Layout, teacher: Path, evaluation: EvalSetup) -> list[MemoryItem]:
    """Text encoders, decoder and scorers."""
    number, kind = _number(config)
    encoders = layout.text_encoders(teacher, no_t5=config.model.no_t5)
    text = sum(count_numbers(read_weight_shapes(teacher / part)) for part in encoders)
    cached = bool(config.data.cache_text_embeddings)
    vae = count_numbers(read_weight_shapes(teacher / "vae"))
    resting, offloaded = config.optim.offload_vae, config.eval.offload_scorers
    scorers = sum(scorer_bytes(name, paths) for name, paths in evaluation.paths.items())
    return [
        MemoryItem(
            "text encoders",
            text * number,
            f"{text / 1e6:.1f} M numbers in {kind}" + (", gone before the networks come" if cached else ""),
            (ENCODING,) if cached else LOADED,
            flags=_bf16(config) if cached else ("--cache_text_embeddings",),
        ),
        MemoryItem(
            "autoencoder",
            vae * number,
            f"{vae / 1e6:.1f} M numbers in {kind}",
            (IMAGES,) if resting else LOADED,
            flags=() if resting else ("--offload_vae",),
        ),
        MemoryItem(
            "scorers",
            scorers,
            "weights in fp32",
            (IMAGES,) if offloaded else LOADED,
            flags=() if offloaded else ("--offload_scorers",),
        ),
    ]


def scorer_bytes(name: str, paths: Mapping[str, Path]) -> int:
    """Return the bytes of a scorer's weights in fp32; `paths` is flag -> path."""
    return sum(_file_bytes(paths[file.flag], file.loaded) for file in SCORERS[name].weights)


def _file_bytes(path: Path, prefix: str = "") -> int:
    """Bytes of a scorer's weights in fp32, of names with `prefix`: by their header, or else their files' size."""
    if path.is_file():
        return path.stat().st_size
    try:
        shapes = read_weight_shapes(path)
        return FP32 * count_numbers({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
    except ValueError:  # OpenCLIP's layout has names of its own
        return sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))


def _call(config: Config, layout: Layout, teacher: Path, batch: int, *, trained: bool) -> CallMemory | None:
    """A call on `batch` rows of a trained network, whole or by adapters, or of the teacher."""
    data = config.data
    tokens = layout.text_tokens(teacher, data.max_sequence_length or 256)
    rank = config.model.lora_rank if trained else None
    casts = trained and rank is None
    shape = CallShape(batch, data.height, data.width, tokens, config.optim.bf16, casts, rank)
    return layout.memory_of_call(teacher, shape)


def _turns(config: Config, layout: Layout, teacher: Path) -> list[MemoryItem]:
    """Graphs that wait for their backward pass, and the most that works beside them."""
    batch, calls = config.optim.batch_size, config.method.stu_inference_steps
    guided = 1 if config.method.teacher_guidance_scale == 1 else 2
    call = _call(config, layout, teacher, batch, trained=True)
    seen = _call(config, layout, teacher, guided * batch, trained=False)
    again = _recomputed_blocks(config, layout, teacher)
    flags = ("--batch_size (and --grad_accum)", *_more_recomputed(config))
    if call is None or seen is None:
        return [MemoryItem("activations", None, "this family does not count them", TURNS, flags)]
    kept, backward = call.kept(again), call.working(again)
    how = f"the inputs of {again} blocks and all that {len(call.blocks) - again} keep"
    working = "one block recomputed" if again else "one feed-forward's gradients"
    rows = f"{guided * batch} rows of the teacher without a graph"
    return [
        MemoryItem("student, graphs", calls * kept, f"{calls} calls x batch {batch}, {how}", (STUDENT,), flags),
        MemoryItem("fake score, graph", kept, f"1 call x batch {batch}, {how}", (FAKE,), flags),
        _student_at_work({working: backward, rows: seen.passing, **_discriminator(config, call, again)}, flags),
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
    """The flag that would recompute more blocks, if there is one."""
    if not config.optim.gradient_checkpointing:
        return ("--gradient_checkpointing",)
    return () if config.optim.recomputed_blocks == "all" else ("--recomputed_blocks all",)


def _student_at_work(uses: dict[str, int], flags: tuple[str, ...]) -> MemoryItem:
    """The largest of what a student turn does while its graphs wait."""
    return MemoryItem("at work", max(uses.values()), f"the largest of {', '.join(uses)}", (STUDENT,), flags)


def _discriminator(config: Config, call: CallMemory, recomputed: int) -> dict[str, int]:
    """The generator loss: a graph of its own, through the network whose features the discriminator reads."""
    if DISCRIMINATOR not in registry.trained_networks(config.method):
        return {}
    own = config.method.gan_features == "fake" or config.model.lora_rank is not None
    again = recomputed if own else 0
    return {"the discriminator's view, with its graph": call.kept(again) + call.working(again)}


def _perceptual(config: Config) -> list[MemoryItem]:
    """What is there beside the student's graphs where its images are compared."""
    if config.method.perceptual_path is None:
        return []
    return [MemoryItem("perceptual loss", None, "one image decoded and looked at, with its graph", (STUDENT,))]


def _images(config: Config, layout: Layout, teacher: Path, evaluation: EvalSetup) -> list[MemoryItem]:
    """Sampling for an evaluation, and decoding: in process_vis student, x0_real, x0_fake, and a teacher's sample where
    the student's turn has one."""
    evaluated = config.eval.eval_batch_size if evaluation.sets else 0
    kinds = 4 if METHODS[config.method.method].teacher_samples_in == registry.STUDENT else 3
    shown = kinds * min(MAX_IMAGES, config.optim.batch_size) if config.run.vis_every else 0
    decoded = min(1, shown + evaluated) if config.optim.offload_vae else max(shown, evaluated)
    pixels, (_, kind) = config.data.height * config.data.width, _number(config)
    one = decode_bytes(read_json(teacher / "vae" / "config.json"), pixels, config.optim.bf16)
    sampled = _call(config, layout, teacher, 2 * evaluated, trained=False)
    sampling = sampled.passing if sampled else 0
    return [
        MemoryItem(
            "making images",
            max(decoded * one, sampling),
            f"the larger of decoding {decoded} at a time in {kind} and {2 * evaluated} rows of the teacher",
            (IMAGES,),
            ("--eval_batch_size",) if config.optim.offload_vae else ("--offload_vae", "--eval_batch_size"),
        )
    ]
