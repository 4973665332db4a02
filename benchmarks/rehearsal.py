"""Every program at the real size of a family's official model on this CPU: seconds, and peak memory by the estimate.

    python benchmarks/rehearsal.py sd35 --work outputs/rehearsal
    python benchmarks/rehearsal.py sd35 --variant SD3.5-Large --work outputs/rehearsal --base_precision int8
    python benchmarks/rehearsal.py qwen_image --hollow --work outputs/rehearsal --preset 48gb

Writes the official architecture with random weights (sd35: 16 GB) and tokenizers of the official size, so nothing is
downloaded, and runs each program in a process of its own: a short LoRA training at 256 x 256, generate, the root
programs with small scorers (test_quality.py only if pyiqa is installed), export, and the doctor. Flags that are not
in the list below are flags of the training and the doctor. Exit status 1 if a program failed or took more than --limit.

With --hollow the folder has no numbers, so a model of any size takes no disk: only the checks of a run and the memory
estimate are done, with the given flags alone.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from real_size_folder import known_families, write_real_size
from result_file import describe_cpu, result_head, write_result

from dpdmd.config import parse
from dpdmd.models.registry import LAYOUTS
from dpdmd.utils.tables import markdown_table

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red circle on a table", "a photo of a cat in the snow", "two boats under a blue sky", "an old house")
SIZE = ("--height", "256", "--width", "256")
CYCLES = 2
INTERVAL = 0.1  # seconds between two looks at a program's memory
SETTING = (
    f"Random weights in bf16. LoRA 64 at 256 x 256, batch 1, {CYCLES} cycles, text embeddings cached; {len(PROMPTS)}\n"
    "prompts, images of the trained LoRA at 256 x 256."
)
HOLLOW = "Configurations, tokenizers and headers of the official size without numbers; nothing is loaded."
CHECKS = """
import sys
from dpdmd.config import parse
from dpdmd.training import preflight
setup = preflight.check(parse(sys.argv[1:]))
print(f"all checks pass; {setup.memory.summary()}", *setup.warnings, sep="\\n")
"""
COLUMNS = ("program", "exit status", "seconds", "estimate, GB", "peak resident, GB", "of it not in files, GB")


@dataclass(frozen=True)
class Measured:
    """What one program took.

    Attributes:
        estimate: GB that the program printed; "" if it printed none.
        resident: peak of resident memory in GB, of the process and all that it started.
        anonymous: the same without pages of mapped files, which the system drops if memory is short.
    """

    status: int
    seconds: float
    estimate: str
    resident: float
    anonymous: float


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process and all that it started: in all, and without pages of mapped files."""
    found, resident, files = [pid], 0, 0
    for each in found:
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except OSError:  # it has ended
            continue
        values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        resident += values.get("VmRSS", 0)
        files += values.get("RssFile", 0)
    return resident, resident - files


def measure(command: Sequence[str], log: Path, threads: int) -> Measured:
    """Run a program of this checkout, and measure it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    started, peaks = time.perf_counter(), (0, 0)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            peaks = tuple(map(max, peaks, resident_bytes(process.pid)))
            time.sleep(INTERVAL)
    estimate = re.search(r"estimated (?:at least )?([\d.]+) GB", log.read_text())
    seconds = time.perf_counter() - started
    return Measured(process.returncode, seconds, estimate[1] if estimate else "", peaks[0] / 1e9, peaks[1] / 1e9)


def save_maniqa(path: Path) -> None:
    """Write MANIQA's checkpoint with random weights."""
    import timm
    from pyiqa.archs.maniqa_arch import MANIQA

    build = timm.create_model
    with mock.patch.object(timm, "create_model", lambda name, pretrained: build(name, pretrained=False)):
        torch.save({"params": MANIQA(pretrained=False).state_dict()}, path)


def commands(family: str, work: Path, flags: Sequence[str]) -> dict[str, list[str]]:
    """Return the command line of each program, in the order in which they need each other.

    Args:
        flags: more flags of the training and the doctor.
    """
    run, prompts = work / "run", work / "prompts.txt"
    tiny = ROOT / "weights" / "tiny"
    options = [*_model(family, work), *SIZE, *("--lora_rank", "64", "--batch_size", "1")]
    options += ["--bf16", "--gradient_checkpointing", "--offload_vae", *("--report_to", "none")]
    options += ["--cache_text_embeddings", str(work / "text"), *flags]
    steps = CYCLES * (parse(options).method.per_train_fake_num + 1)
    sampled = ["--model", str(run), "--base_model", str(work / "teacher"), "--prompts_txt", str(prompts)]
    diversity = ["--dino_path", str(tiny / "dinov2"), "--clip_path", str(tiny / "clip"), "--num_samples", "2"]
    preference = ["--pick_processor_path", str(tiny / "pickscore"), "--pick_model_path", str(tiny / "pickscore")]
    preference += ["--ir_model_path", str(tiny / "ImageReward" / "ImageReward.pt")]
    preference += ["--ir_med_config", str(tiny / "ImageReward" / "med_config.json"), "--clip_score_path", ""]
    quality = ["--maniqa_path", str(work / "maniqa.pth"), "--vq_path", "", "--num_crops", "1"]
    export = ["--model", str(run), "--out", str(work / "pipeline"), "--dtype", "bf16"]  # as the weights are stored
    return {
        "dpdmd.train": ["-m", "dpdmd.train", *options, "--run_dir", str(run), "--max_steps", str(steps)],
        "dpdmd.generate": [
            *("-m", "dpdmd.generate", "--model", str(run), "--prompt_txt", str(prompts)),
            *("--num_images", "1", "--out", str(work / "images")),
        ],
        "test_diversity.py": ["test_diversity.py", *sampled, *diversity, "--output_dir", str(work / "diversity")],
        "test_preference.py": ["test_preference.py", *sampled, *preference, "--output_dir", str(work / "preference")],
        "test_quality.py": ["test_quality.py", *sampled, *quality, "--output_dir", str(work / "quality")],
        "dpdmd.export": ["-m", "dpdmd.export", *export],
        "dpdmd.doctor": ["-m", "dpdmd.doctor", *options, "--out", str(work / "doctor")],
    }


def hollow_commands(family: str, work: Path, flags: Sequence[str]) -> dict[str, list[str]]:
    """Return the command line of each check that reads no weights."""
    options = [*_model(family, work), *flags]
    run = ["--run_dir", str(work / "run"), "--max_steps", "12"]
    return {
        "checks of dpdmd.train": ["-c", CHECKS, *options, *run],
        "dpdmd.doctor --memory": ["-m", "dpdmd.doctor", "--memory", *options],
    }


def _model(family: str, work: Path) -> list[str]:
    return ["--family", family, "--teacher_id", str(work / "teacher"), "--prompt_txt", str(work / "prompts.txt")]


def document(title: str, setting: str, rows: dict[str, Measured], threads: int) -> list[str]:
    """Return the lines of the dated result."""
    cells = [
        [name, str(row.status), f"{row.seconds:.0f}", row.estimate, f"{row.resident:.1f}", f"{row.anonymous:.1f}"]
        for name, row in rows.items()
    ]
    return [*result_head(title, describe_cpu(threads)), setting, "", markdown_table(list(COLUMNS), cells)]


def build_parser() -> argparse.ArgumentParser:
    others = [name for layout in LAYOUTS.values() for name in layout.other_official]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("family", choices=known_families())
    parser.add_argument("--variant", default="", choices=others, help="another model of the family")
    parser.add_argument("--hollow", action="store_true", help="no weights: the checks of a run and its estimate")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models, on a disk with 60 GB free")
    parser.add_argument("--only", nargs="+", help="programs to run (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep --work; a later call uses what is there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=16.0, help="GB of resident memory (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def main() -> int:
    args, flags = build_parser().parse_known_args()
    layout = LAYOUTS[args.family]
    work = args.work.resolve() / f"rehearsal_{(args.variant or args.family).lower()}"  # of its own: it is deleted
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "teacher").exists():
        write_real_size(args.family, work / "teacher", args.variant, hollow=args.hollow)
    (work / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    programs = (hollow_commands if args.hollow else commands)(args.family, work, flags)
    if find_spec("pyiqa") is None:
        programs.pop("test_quality.py", None)  # MANIQA is pyiqa's
    elif not args.hollow:
        save_maniqa(work / "maniqa.pth")
    name = args.variant or layout.repository
    title = f"{'The checks of a run' if args.hollow else 'Every program'} at the real size of {name}"
    setting = HOLLOW if args.hollow else SETTING
    if unknown := set(args.only or ()) - programs.keys():
        sys.exit(f"rehearsal: --only {unknown.pop()}: is not one of {', '.join(programs)}")
    rows: dict[str, Measured] = {}
    result = f"rehearsal_{(args.variant or args.family).lower()}"
    for program, command in programs.items():
        if args.only and program not in args.only:
            continue
        rows[program] = measure(command, work / f"{program}.log", args.threads)
        write_result(args.out, result, document(title, setting, rows, args.threads))
    if not args.keep:
        shutil.rmtree(work)
    sys.stdout.write("\n".join(document(title, setting, rows, args.threads)) + "\n")
    return int(any(row.status or row.resident > args.limit for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
