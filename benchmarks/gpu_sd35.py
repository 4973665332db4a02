"""Seconds, memory and MFU of training SD3.5-Medium's architecture on one GPU, random weights: nothing is downloaded.

    python benchmarks/gpu_sd35.py --out benchmarks/results          at most ten minutes on one H200
    python benchmarks/gpu_sd35.py --family flux2_klein              another family's official model (16 GB on disk)
    python benchmarks/gpu_sd35.py --tiny --out outputs/try          the same on a CPU, in small, to see that it runs

Full fine-tuning of both networks and LoRA, eager and compiled, by dpdmd.train's own steps: bf16 compute, fp32 trained
weights, all blocks recomputed or as few as the plan of memory says fit, the paper's teacher, student and K. LoRA also
on a base in int8, and in nf4 if bitsandbytes is installed. SD3.5's text encoders have the official widths and lengths
but one or two layers, another family encodes ahead: their share is benchmarks/train_step.py's matter. MFU is against
the rate of a matrix product in the compute type, measured in the same run; FLOPs are those that torch counts in one
eager cycle, recomputation included, for a compiled run too. A row that does not fit the memory, or that --minutes leave
no time for, says so.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from real_size_folder import known_families, write_real_size
from result_file import result_head, write_result
from torch.utils.flop_counter import FlopCounterMode
from train_step import make_trainer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dpdmd.config.precisions import INT8, NF4
from dpdmd.methods.update_schedule import is_student_update
from dpdmd.models.memory_estimate import CONTEXT
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sd35.official import OFFICIAL
from dpdmd.shapes import world
from dpdmd.shapes.autoencoder import build_autoencoder
from dpdmd.shapes.teacher import build_pipeline
from dpdmd.training.memory_items import FAKE, STUDENT
from dpdmd.training.trainer import Trainer

TRAINED = {
    "LoRA 64": ["--lora_rank", "64"],
    "full": [],
    "LoRA 64, recomputed by plan": ["--lora_rank", "64", "--recomputed_blocks", "auto"],
}
QUANTIZED = {  # beside "LoRA 64", eager at the largest batch size
    f"LoRA 64 on {precision}": ["--lora_rank", "64", "--base_precision", precision]
    for precision in (INT8, *([NF4] if find_spec("bitsandbytes") else []))
}


@dataclass(frozen=True)
class Case:
    """One row: what is trained, how, and on how much."""

    batch: int
    trained: str
    compiled: bool


@dataclass(frozen=True)
class Measured:
    """Median seconds of a fake and a student turn, FLOPs of a cycle, and the peak beside the plan's.

    Attributes:
        peak: bytes of tensors on the device; None on a CPU, where nobody counts them.
        planned: the same by the plan, CUDA's own context left out.
    """

    fake_seconds: float
    student_seconds: float
    cycle_seconds: float
    cycle_flops: float | None
    peak: int | None
    planned: int


def save_pipeline(folder: Path, family: str, tiny: bool) -> None:
    """Write a pipeline folder in the official layout, with random weights."""
    if family != "sd35" and tiny:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import small_models

        getattr(small_models, f"save_tiny_{family}")(folder)
        return
    if family != "sd35":
        write_real_size(family, folder)
        return
    pipe: StableDiffusion3Pipeline = build_pipeline(build_autoencoder(), world)
    if not tiny:
        parts = {
            "transformer": SD3Transformer2DModel(**OFFICIAL["transformer"]),
            "vae": AutoencoderKL(**OFFICIAL["vae"]),
        }
        for suffix, width in (("", 768), ("_2", 1280)):
            settings = pipe.text_encoder.config.to_dict()
            settings |= {"hidden_size": width, "projection_dim": width, "intermediate_size": 4 * width}
            settings |= {"num_attention_heads": width // 64, "num_hidden_layers": 2, "max_position_embeddings": 77}
            getattr(pipe, f"tokenizer{suffix}").model_max_length = 77
            parts[f"text_encoder{suffix}"] = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
        settings = pipe.text_encoder_3.config.to_dict()
        settings |= {"d_model": 4096, "num_layers": 1, "num_heads": 64, "d_kv": 64, "d_ff": 10240}
        parts["text_encoder_3"] = T5EncoderModel(T5Config(**settings))
        pipe.register_modules(**parts)
    pipe.save_pretrained(folder)
    SamplingDefaults(steps=30, guidance_scale=3.5, max_sequence_length=10 if tiny else 256).write(folder)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """FLOPs a second of a matrix product, the best of ten."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(10):
        synchronise()
        started = time.perf_counter()
        a @ a
        synchronise()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(trainer: Trainer, cycles: int, flops: float | None, compiled: bool) -> Measured:
    """Warm up for a cycle, in which FLOPs are counted unless `compiled` hides them, then time `cycles`."""
    length = trainer.config.method.per_train_fake_num + 1
    with nullcontext() if compiled else FlopCounterMode(display=False) as counter:
        for step in range(length):
            trainer.take_step(step)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(length, (cycles + 1) * length):
        synchronise()
        started = time.perf_counter()
        trainer.take_step(step)
        synchronise()
        seconds[is_student_update(step, trainer.config.method)].append(time.perf_counter() - started)
    fake, student = (statistics.median(seconds[turn]) for turn in (False, True))
    return Measured(
        fake_seconds=fake,
        student_seconds=student,
        cycle_seconds=(length - 1) * fake + student,
        cycle_flops=flops if compiled else float(counter.get_total_flops()),
        peak=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        planned=max(trainer.setup.memory.bytes_in_phase(turn) for turn in (FAKE, STUDENT)) - CONTEXT,
    )


def run_all(
    common: list[str], cases: list[Case], work: Path, cycles: int, until: float
) -> Iterator[tuple[Case, object]]:
    """(case, Measured or why there is none) of each case."""
    flops: dict[tuple[int, str], float | None] = {}
    longest = 0.0
    for number, case in enumerate(cases):
        started = time.monotonic()
        if started + longest > until:
            yield case, "not run: out of time"
            continue
        flags = [*common, "--batch_size", str(case.batch), *(TRAINED | QUANTIZED)[case.trained]]
        flags += ["--compile"] if case.compiled else []
        trainer = None
        try:
            trainer = make_trainer(flags, work / f"run_{number}")
            key = (case.batch, case.trained)
            found = measure(trainer, cycles, flops.get(key), case.compiled)
            flops[key] = found.cycle_flops
        except torch.OutOfMemoryError as error:
            found = f"out of memory ({str(error).partition(chr(10))[0]})"
        yield case, found
        trainer = None  # its memory is the next one's
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if case.compiled:
            torch.compiler.reset()
        longest = max(longest, time.monotonic() - started)


def line(case: Case, found: object, rate: float) -> str:
    """The case's row of the table."""
    name = f"| {case.trained} | {'compiled' if case.compiled else 'eager'} | {case.batch} | "
    if not isinstance(found, Measured):
        return f"{name}{found} | | | | | | |"
    mfu = f"{found.cycle_flops / found.cycle_seconds / rate:.1%}" if found.cycle_flops else ""
    peak = f"{found.peak / 1e9:.1f}" if found.peak else ""
    ratio = f"{found.planned / found.peak:.2f}" if found.peak else ""
    return (
        f"{name}{found.fake_seconds:.2f} | {found.student_seconds:.2f} | {6 * case.batch / found.cycle_seconds:.2f} | "
        f"{mfu} | {peak} | {found.planned / 1e9:.2f} | {ratio} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=known_families(), default="sd35", help="(default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--cycles", type=int, default=1, help="timed, after one to warm up (default: %(default)s)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--minutes", type=float, default=9.0, help="no row starts that would end later")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("no GPU: --tiny shows on a CPU that this runs")
    until = time.monotonic() + 60 * args.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = "64" if args.tiny else "1024"
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    dtype = torch.float32 if args.tiny else torch.bfloat16
    rate = matrix_rate(device, 512 if args.tiny else 8192, dtype)
    lines = [
        *result_head(
            f"{LAYOUTS[args.family].repository}'s architecture, random weights",
            f"{place}, {size} x {size}; {rate / 1e12:.3g} TFLOP/s in a matrix product ({dtype})",
        ),
        "| trained | | batch | fake turn, s | student turn, s | samples/s | MFU | peak, GB | plan, GB | plan / peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    eager, compiled = (
        [Case(b, t, compiled) for b, t in product(args.batch_sizes, TRAINED)] for compiled in (False, True)
    )
    cases = [*eager, *(Case(max(args.batch_sizes), t, False) for t in QUANTIZED), *compiled]
    name, runs = f"gpu_{args.family}" + ("_tiny" if args.tiny else ""), []
    with tempfile.TemporaryDirectory() as work:
        folder, prompts = Path(work) / args.family, Path(work) / "prompts.txt"
        save_pipeline(folder, args.family, args.tiny)
        prompts.write_text("\n".join(f"an image of {count} things" for count in range(64)))
        common = [
            "--family",
            args.family,
            "--teacher_id",
            str(folder),
            "--prompt_txt",
            str(prompts),
            "--height",
            size,
            "--width",
            size,
        ]
        common += ["--gradient_checkpointing", *(["--bf16"] if not args.tiny else [])]
        if args.family != "sd35":
            common += ["--cache_text_embeddings", str(Path(work) / "text")]
        for case, found in run_all(common, cases, Path(work), args.cycles, until):
            lines.append(line(case, found, rate))
            runs.append(asdict(case) | (asdict(found) if isinstance(found, Measured) else {"failure": found}))
            # After each row: whatever ends this program early, the rows before are there.
            write_result(args.out, name, lines, {"matrix_rate": rate, "runs": runs})
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
