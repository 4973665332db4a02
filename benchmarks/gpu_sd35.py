"""Seconds, memory and MFU of training SD3.5-Medium's architecture on one GPU, random weights: nothing is downloaded.

    python benchmarks/gpu_sd35.py --out benchmarks/results          about ten minutes on one H200
    python benchmarks/gpu_sd35.py --tiny --out outputs/try           the same on a CPU, in small, to see that it runs

Full fine-tuning of both networks by dpdmd.train's own steps: bf16 compute, fp32 weights, gradient checkpointing, the
paper's teacher, student and K. The text encoders have the official widths and lengths but one or two layers: their
share is benchmarks/train_step.py's matter. MFU is against the rate of a bf16 matrix product that is measured in the
same run; FLOPs are those that torch counts in one cycle, recomputation included.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode
from train_step import make_trainer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from dpdmd.checkpoint import versions
from dpdmd.families.layouts import Note
from dpdmd.methods import is_student_turn
from dpdmd.run_folder import write_text
from dpdmd.shapes.autoencoder import build_autoencoder
from dpdmd.shapes.teacher import build_pipeline
from dpdmd.trainer import Trainer

SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
SD3_VAE = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def save_pipeline(folder: Path, tiny: bool) -> None:
    """A pipeline folder in the official layout, random weights."""
    pipe: StableDiffusion3Pipeline = build_pipeline(build_autoencoder())
    if not tiny:
        parts = {"transformer": SD3Transformer2DModel(**SD35_MEDIUM), "vae": AutoencoderKL(**SD3_VAE)}
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
    Note(steps=30, guidance_scale=3.5, max_sequence_length=10 if tiny else 256).write(folder)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOPs a second of a bf16 matrix product, the best of ten."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(10):
        synchronise()
        started = time.perf_counter()
        a @ a
        synchronise()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(trainer: Trainer, cycles: int) -> dict[str, float]:
    """Median seconds of a fake and a student turn, FLOPs of a cycle, and the peak memory."""
    length = trainer.config.method.per_train_fake_num + 1
    with FlopCounterMode(display=False) as counter:  # also the warm-up
        for step in range(length):
            trainer.take_step(step)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(length, (cycles + 1) * length):
        synchronise()
        started = time.perf_counter()
        record = trainer.take_step(step)
        synchronise()
        seconds[is_student_turn(step, trainer.config.method)].append(time.perf_counter() - started)
    fake, student = (statistics.median(seconds[turn]) for turn in (False, True))
    return {
        "fake_seconds": fake,
        "student_seconds": student,
        "cycle_seconds": (length - 1) * fake + student,
        "cycle_flops": float(counter.get_total_flops()),
        "peak_gb": record["memory_gb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the small world's architecture, to see that it runs")
    parser.add_argument("--cycles", type=int, default=2)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("no GPU: --tiny shows on a CPU that this runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[int, dict[str, float] | str] = {}
    with tempfile.TemporaryDirectory() as work:
        folder, prompts = Path(work) / "sd35", Path(work) / "prompts.txt"
        save_pipeline(folder, args.tiny)
        prompts.write_text("\n".join(f"a picture of {count} things" for count in range(64)))
        size = "64" if args.tiny else "1024"
        common = ["--teacher_id", str(folder), "--prompt_txt", str(prompts), "--height", size, "--width", size]
        common += ["--gradient_checkpointing", *(["--bf16"] if not args.tiny else [])]
        rate = matrix_rate(device, 512 if args.tiny else 8192)
        for batch in args.batch_sizes:
            run = Path(work) / f"run_{batch}"
            try:
                trainer = make_trainer([*common, "--batch_size", str(batch)], run)
                found[batch] = measure(trainer, args.cycles)
            except torch.OutOfMemoryError as error:
                found[batch] = str(error).partition("\n")[0]
            trainer = None  # its memory is the next one's
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    date = datetime.date.today().isoformat()
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        f"# SD3.5-Medium's architecture, random weights ({date})",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"{place}, {size} x {size}; {rate / 1e12:.1f} TFLOP/s in a bf16 matrix product; {used}",
        "",
        "| batch | fake turn, s | student turn, s | cycle, s | samples a second | MFU | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, row in found.items():
        if isinstance(row, str):
            lines.append(f"| {batch} | {row} | | | | | |")
            continue
        mfu = row["cycle_flops"] / row["cycle_seconds"] / rate
        lines.append(
            f"| {batch} | {row['fake_seconds']:.2f} | {row['student_seconds']:.2f} | {row['cycle_seconds']:.2f} | "
            f"{6 * batch / row['cycle_seconds']:.2f} | {mfu:.1%} | {row['peak_gb']:.1f} |"
        )
    name = f"{date}_gpu_sd35" + ("_tiny" if args.tiny else "")
    write_text(args.out / f"{name}.md", "\n".join(lines) + "\n")
    write_text(args.out / f"{name}.json", json.dumps({"matrix_rate": rate, "runs": found}, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
