"""Every family trains the same on one process and on two, with whole networks (DDP) and with sharded ones (FSDP2)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd.models.registry import LAYOUTS

PROMPTS = ["a red circle", "a large blue square and a small cyan cross on a grey background", "x", "a triangle"]
PROGRAMS = {"DDP": ["-m", "dpdmd.train"], "FSDP2": ["tests/processes/drivers/fsdp_cpu.py"]}
OTHERS = [family for family in LAYOUTS if family != "sd35"]  # test_topologies.py has its trajectories
STEPS = 4
LOSS, WEIGHT_MEAN, WEIGHT_MAX = 1e-4, 1e-6, 5e-3  # for the reasons in test_topologies.py


def results(run: Path, network: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Return the records of all steps, and the student's weights after the last one."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return lines, load_file(run / "ckpts" / "latest" / "student" / network / "diffusion_pytorch_model.safetensors")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", OTHERS)
def test_two_processes_take_the_trajectory_of_one(family, tiny_folder, tmp_path, run_processes):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    command = [
        *("--family", family, "--teacher_id", str(tiny_folder(family)), "--prompt_txt", str(prompts), "--height", "64"),
        *("--width", "64", "--teacher_infer_steps", "4", "--k_anchor", "2", "--stu_inference_steps", "2"),
        *("--student_sigmas", "trailing", "--per_train_fake_num", "1", "--max_grad_norm", "0.05"),
        *("--report_to", "none"),
        *("--lr_student", "1e-3", "--lr_fake", "1e-3", "--vis_every", "0", "--max_steps", str(STEPS)),
    ]
    one = tmp_path / "one"
    run_processes([*PROGRAMS["DDP"], *command, "--batch_size", "4", "--run_dir", str(one)], 1)
    lines, weights = results(one, LAYOUTS[family].network)
    for name, program in PROGRAMS.items():
        run, more = tmp_path / name, ["--shard_teacher"] if name == "FSDP2" else []
        run_processes([*program, *command, *more, "--batch_size", "2", "--run_dir", str(run)], 2)
        others, moved = results(run, LAYOUTS[family].network)
        for line, other in zip(lines, others, strict=True):
            for key in ("loss_fake", "loss_student", "grad_norm"):
                assert (key in other) == (key in line)
                assert key not in line or other[key] == pytest.approx(line[key], rel=LOSS)
        difference = torch.cat([(moved[key] - value).abs().flatten() for key, value in weights.items()])
        assert difference.mean() <= WEIGHT_MEAN and difference.max() <= WEIGHT_MAX
