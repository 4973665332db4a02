"""scripts/slurm_train_sd35.sh with made-up srun and scontrol: what it launches, and when it queues itself again."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
echo "$@" >> "$CALLS/srun"
[ -z "$LAST_LINE" ] || echo "$LAST_LINE" >&2
exit "$STATUS"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> "$CALLS/scontrol"; fi
"""


STOPPED = "dpdmd.train: stopped: SIGUSR1: saved at step 300; continue with --resume_from_checkpoint latest"


@pytest.mark.parametrize(
    ("status", "last_line", "again", "nodes"),
    [
        (0, "saved ckpts/step_006000", False, 2),
        (1, STOPPED, True, 1),
        (1, "dpdmd.train: stopped: SIGUSR1; files written before are complete", True, 2),  # while the models load
        (1, "dpdmd.train: stopped: SIGTERM; files written before are complete", False, 2),  # another trainer failed
        (1, "step 12 fake loss_fake=nan", False, 2),
        (2, "", False, 1),
    ],
)
def test_a_job_is_queued_again_only_after_a_signal(tmp_path, status, last_line, again, nodes):
    """What the trainers print says what ended them, wherever their log is."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "STATUS": str(status),
        "LAST_LINE": last_line,
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": str(nodes),
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "scripts/slurm_train_sd35.sh", "--max_steps", "9"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    called = (tmp_path / "calls" / "srun").read_text()
    assert ("--config scripts/configs/sd35_16gpus.yaml" in called) == (nodes == 2) and "--max_steps 9" in called
    assert last_line in done.stdout
    requeued = (tmp_path / "calls" / "scontrol").exists()
    assert requeued == again and done.returncode == (0 if again else status)
    if again:
        assert (tmp_path / "calls" / "scontrol").read_text() == "requeue 41\n"


def test_outside_a_job_it_prints_how_to_submit_one():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = ["bash", str(ROOT / "scripts" / "slurm_train_sd35.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("this is a job: sbatch scripts/slurm_")
