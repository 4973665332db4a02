"""scripts/slurm_train_sd35.sh with made-up srun and scontrol: what it launches, and when it queues itself again."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
echo "$@" >> "$CALLS/srun"
mkdir -p "$FOLDER/log"
[ -z "$LAST_LINE" ] || echo "2026-01-01 00:00:00 INFO $LAST_LINE" >> "$FOLDER/log/log.txt"
exit "$STATUS"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> "$CALLS/scontrol"; fi
"""


STOPPED = "stopped: SIGUSR1: saved at step 300; continue with --resume_from_checkpoint latest"


@pytest.mark.parametrize("by_flag", [False, True])
@pytest.mark.parametrize(
    ("status", "last_line", "again"),
    [
        (0, "saved ckpts/step_006000", False),
        (1, STOPPED, True),
        (1, "step 12 fake loss_fake=nan", False),
        (2, "", False),  # it failed before it wrote to the log, whose last line is of the attempt before
    ],
)
def test_a_job_is_queued_again_only_after_a_signal(tmp_path, status, last_line, again, by_flag):
    """The folder is that of the script, or of --run_dir."""
    folder = tmp_path / "run"
    (folder / "log").mkdir(parents=True)
    (folder / "log" / "log.txt").write_text(f"2026-01-01 00:00:00 INFO {STOPPED}\n")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "RUN": str(tmp_path / "other" if by_flag else folder),
        "FOLDER": str(folder),
        "STATUS": str(status),
        "LAST_LINE": last_line,
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "scripts/slurm_train_sd35.sh", "--max_steps", "9", *(["--run_dir", str(folder)] if by_flag else [])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "--max_steps 9" in (tmp_path / "calls" / "srun").read_text()
    requeued = (tmp_path / "calls" / "scontrol").exists()
    assert requeued == again and done.returncode == (0 if again else status)
    if again:
        assert (tmp_path / "calls" / "scontrol").read_text() == "requeue 41\n"


def test_outside_a_job_it_prints_how_to_submit_one():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = ["bash", str(ROOT / "scripts" / "slurm_train_sd35.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("this is a job: sbatch scripts/slurm_")
