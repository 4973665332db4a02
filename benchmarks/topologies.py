"""Compare one trajectory in every topology: one process, accumulation, DDP, FSDP2 with a sharded teacher, and resumes.

    python benchmarks/topologies.py --out benchmarks/results

All runs use the same prompts and noises, so losses, gradient norms (clipped) and weights differ only by the order of
fp32 sums. All runs are on CPU processes, through tests/processes/drivers/fsdp_cpu.py.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from processes import LAUNCHER, cpu_environment, free_port
from result_file import result_head, write_result
from safetensors.torch import load_file

from dpdmd.run_folder import LATEST, RunFolder

SMALL_WORLD = (
    "--teacher_id weights/tiny/sd35 --prompt_txt data/shapes_train.txt --height 64 --width 64 --teacher_infer_steps 4 "
    "--k_anchor 2 --stu_inference_steps 2 --lr_student 1e-3 --lr_fake 1e-3 --report_to none "
    "--clip_path weights/tiny/clip --ir_model_path weights/tiny/ImageReward/ImageReward.pt "
    "--ir_med_config weights/tiny/ImageReward/med_config.json --div_prompts data/shapes_eval.txt "
    "--pref_prompts data/shapes_eval.txt --eval_prompts_limit 2 --num_div_seeds 3"
)
STEPS = 6
MIDDLE = STEPS // 2
WEIGHTS = ("student/transformer/diffusion_pytorch_model.safetensors", "state/fake.safetensors")
DRIVER = "tests/processes/drivers/fsdp_cpu.py"
REFERENCE = "1 process x 4"


def launch(processes: int, runs: list[list[str]]) -> None:
    """Run command lines one after the other in one launch; each begins with its topology (see the driver)."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", *LAUNCHER, "--master_port", free_port(), "--nproc_per_node", str(processes)]
    command += [DRIVER, *(word for run in runs for word in run)]
    done = subprocess.run(command, env=cpu_environment(), capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: {done.stderr[-3000:]}")


def run_all(work: Path, common: list[str]) -> dict[str, RunFolder]:
    """Run every topology."""
    length = ["--max_steps", str(STEPS), "--ckpt_every", str(MIDDLE), "--vis_every", "0", "--eval_every", str(STEPS)]
    # Every step exceeds this norm, so clipping by only a part of the norm would show.
    common = [*common, *length, "--max_grad_norm", "0.05"]
    whole = {
        REFERENCE: (1, ["+whole", "--batch_size", "4"]),
        "1 process x 2, accumulation 2": (1, ["+whole", "--batch_size", "2", "--grad_accum", "2"]),
        "2 processes x 2, DDP": (2, ["+whole", "--batch_size", "2"]),
        "2 processes x 2, FSDP2, teacher sharded": (2, ["+FSDP2", "--batch_size", "2", "--shard_teacher"]),
    }
    resumed = {
        "2 processes (DDP), then 1": ("2 processes x 2, DDP", REFERENCE),
        "1 process, then 2 (FSDP2)": (REFERENCE, "2 processes x 2, FSDP2, teacher sharded"),
        "2 processes (FSDP2), then 2 (DDP)": ("2 processes x 2, FSDP2, teacher sharded", "2 processes x 2, DDP"),
    }
    folders = {name: RunFolder.of(work / f"run_{index}") for index, name in enumerate((*whole, *resumed))}

    def run(second: dict[str, str], *more: str) -> None:
        """Run each name as the whole run `second[name]` is run, in one launch for each number of processes."""
        for processes in (1, 2):
            commands = [
                [*whole[other][1], *common, *more, "--run_dir", str(folders[name].root)]
                for name, other in second.items()
                if whole[other][0] == processes
            ]
            launch(processes, commands)

    run({name: name for name in whole})
    for name, (first, _) in resumed.items():
        shutil.copytree(folders[first].root, folders[name].root, symlinks=True)
        shutil.rmtree(folders[name].checkpoint(STEPS))
        folders[name].point(LATEST, folders[name].checkpoint(MIDDLE))
    run({name: second for name, (_, second) in resumed.items()}, "--resume_from_checkpoint", LATEST)
    return folders


def compare(folder: RunFolder, reference: RunFolder) -> dict[str, float]:
    """Return the largest differences of a run from the reference."""
    ours, theirs = ([json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (folder, reference))
    relative = {"loss": 0.0, "grad_norm": 0.0, "score": 0.0}
    for mine, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            kind = name if name == "grad_norm" else "score" if name.startswith("eval/") else name.partition("_")[0]
            if kind in relative and value is not None:
                relative[kind] = max(relative[kind], abs(mine[name] - value) / max(abs(value), 1e-3))
    weights = []
    for name in WEIGHTS:
        a, b = (load_file(run.checkpoint(STEPS) / name) for run in (folder, reference))
        weights += [(a[key] - b[key]).abs().flatten() for key in b]
    difference = torch.cat(weights)
    return {**relative, "weight_mean": difference.mean().item(), "weight_max": difference.max().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", default=SMALL_WORLD, help="of dpdmd.train")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folders = run_all(Path(work), shlex.split(args.flags))
        reference = folders.pop(REFERENCE)
        found = {name: compare(folder, reference) for name, folder in folders.items()}
    lines = [
        *result_head(
            "One trajectory in every topology",
            f"{STEPS} steps on CPU processes (gloo), gradients clipped in each, against {REFERENCE}",
        ),
        "Losses, norms and scores: largest relative difference. Weights: absolute, after updates of 1e-3 each.",
        "",
        "| | losses | gradient norms | scores | weights, mean | weights, largest |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(f'{value:.1e}' for value in row.values())} |" for name, row in found.items()),
    ]
    sys.stdout.write(write_result(args.out, "topologies", lines, found))


if __name__ == "__main__":
    main()
