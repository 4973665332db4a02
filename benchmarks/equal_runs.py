"""Show that a change alters no number: short runs of two revisions, equal to the bit.

    python benchmarks/equal_runs.py --against HEAD~20

Trains 12 steps on the bundled small world with the checkout and with another revision: DP-DMD, DMD-GAN as LoRA,
DMD-LPIPS with the small world's DINO, SDXL on the tests' small model, and DP-DMD on two processes (DDP). Then the
checkout continues a run that the other revision began. Exits with status 1 unless all losses, gradient norms and weight
files agree.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import LAUNCHER, cpu_environment, free_port

ROOT = Path(__file__).parent.parent
STEPS = 12
# A constant rate: with a falling one, half a run of its own would have another schedule than half of the whole run.
SMALL = ("--config", "scripts/configs/paper_tiny.yaml", "--eval_every", "0", "--report_to", "none", "--vis_every", "0")
SHORT = (*SMALL, "--batch_size", "2", "--max_steps", str(STEPS), "--ckpt_every", str(STEPS // 2))
DINO = ("--perceptual", "dino", "--perceptual_path", "weights/tiny/dinov2")
SDXL = (
    *("--family", "sdxl", "--prompt_txt", "data/shapes_train.txt", "--height", "64", "--width", "64"),
    *("--teacher_infer_steps", "6", "--k_anchor", "2", "--batch_size", "2", "--lr_fake", "1e-3"),
    *(
        "--lr_student",
        "1e-3",
        "--report_to",
        "none",
        "--vis_every",
        "0",
        "--max_steps",
        str(STEPS),
        "--ckpt_every",
        str(STEPS // 2),
    ),
)
NOT_COMPARED = ("second", "memory")  # parts of the keys that differ between two runs of one revision


def build_sdxl(folder: Path) -> None:
    """Write the tests' small SDXL pipeline."""
    sys.path.insert(0, str(ROOT / "tests"))
    from small_models import build_sdxl_pipeline

    build_sdxl_pipeline().save_pretrained(folder)


def train(tree: Path, run: Path, flags: tuple[str, ...], processes: int = 1) -> None:
    """Run `dpdmd.train` of a source tree; both trees read the weights and prompts of the checkout."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", *LAUNCHER, "--master_port", free_port(), "--nproc_per_node", str(processes)]
    environment = {**cpu_environment(), "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, "-m", "dpdmd.train", *flags, "--run_dir", str(run)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{tree}: dpdmd.train {' '.join(flags)}: {done.stderr[-3000:]}")


def record(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(n in key for n in NOT_COMPARED)} for line in lines]


def digest(path: Path) -> str:
    """Hash of a weight file; safetensors writes the entries of its header in a random order, so they are sorted."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return hashlib.sha256(content).hexdigest()


def exports(run: Path) -> dict[str, str]:
    """Digest of every weight file of the last checkpoint."""
    last = run / "ckpts" / os.readlink(run / "ckpts" / "latest")
    return {str(path.relative_to(last)): digest(path) for path in sorted(last.rglob("*.safetensors"))}


def compare(name: str, ours: Path, theirs: Path) -> bool:
    """Print one line on two runs; returns whether all that both record and write is equal.

    Metrics that only one of two records has are listed.
    """
    pairs = list(zip(record(ours), record(theirs), strict=True))
    metrics = all(one[key] == other[key] for one, other in pairs for key in one.keys() & other.keys())
    alone = sorted({key for one, other in pairs for key in one.keys() ^ other.keys()})
    files, others = exports(ours), exports(theirs)
    different = sorted(path for path in files.keys() | others.keys() if files.get(path) != others.get(path))
    print(f"{name}: {len(pairs)} records {'equal' if metrics else 'DIFFER'}", end="")
    print(f" (in one of them: {', '.join(alone)})" if alone else "", end=", ")
    print(f"{len(files)} weight files {'but for ' + ', '.join(different) + ' ' if different else ''}equal", flush=True)
    return metrics and not different and len(pairs) > 0 and len(files) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="the other revision, as git names it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        other, sdxl = work / "tree", work / "sdxl"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(other), args.against], check=True, capture_output=True)
        try:
            build_sdxl(sdxl)
            cases = {
                "DP-DMD": ((*SHORT,), 1),
                "DMD-GAN, LoRA": ((*SHORT, "--method", "dmd_gan", "--lora_rank", "4"), 1),
                "DMD-LPIPS, DINO": ((*SHORT, "--method", "dmd_lpips", *DINO), 1),
                "SDXL": ((*SDXL, "--teacher_id", str(sdxl)), 1),
                "DP-DMD, 2 processes": ((*SHORT,), 2),
            }
            equal = []
            for number, (name, (flags, processes)) in enumerate(cases.items()):
                ours, theirs = work / f"ours_{number}", work / f"theirs_{number}"
                train(ROOT, ours, flags, processes)
                train(other, theirs, flags, processes)
                equal.append(compare(name, ours, theirs))
            begun = work / "begun"
            half = (*SMALL, "--batch_size", "2", "--ckpt_every", str(STEPS // 2), "--max_steps")
            train(other, begun, (*half, str(STEPS // 2)))
            train(ROOT, begun, (*half, str(STEPS), "--resume_from_checkpoint", "latest"))
            equal.append(compare("DP-DMD, begun before and continued after", begun, work / "ours_0"))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
