"""Every family trains the same on one process and on two: whole networks (DDP), sharded ones and LoRA (FSDP2)."""

from pathlib import Path

import pytest
from trajectories import assert_one_trajectory

from dpdmd import train
from dpdmd.models.registry import LAYOUTS

PROMPTS = ["a red circle", "a large blue square and a small cyan cross on a grey background", "x", "a triangle"]
OTHERS = [family for family in LAYOUTS if family != "sd35"]  # test_topologies.py has its trajectories
LORA = ["--lora_rank", "2", "--gradient_checkpointing"]
TOPOLOGIES = {  # name -> topology, flags, and the run on one process to compare with
    "DDP": ("+whole", [], "one"),
    "FSDP2": ("+FSDP2", ["--shard_teacher"], "one"),
    "LoRA, FSDP2": ("+FSDP2", LORA, "LoRA, one"),
}


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory, run_processes) -> Path:
    """Return a folder with the runs of each family. Those on two processes share one launch."""
    root = tmp_path_factory.mktemp("families")
    prompts = root / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def command(family: str, name: str, batch_size: int, flags: list[str]) -> list[str]:
        return [
            *("--family", family, "--teacher_id", str(tiny_folder(family)), "--prompt_txt", str(prompts)),
            *("--height", "64", "--width", "64", "--teacher_infer_steps", "4", "--k_anchor", "2"),
            *("--stu_inference_steps", "2", "--student_sigmas", "trailing", "--per_train_fake_num", "1"),
            *("--max_grad_norm", "0.05", "--lr_student", "1e-3", "--lr_fake", "1e-3", "--report_to", "none"),
            *("--vis_every", "0", "--max_steps", "4", "--batch_size", str(batch_size), *flags),
            *("--run_dir", str(root / family / name)),
        ]

    launched = []
    for family in OTHERS:
        assert train.main(command(family, "one", 4, [])) == 0
        assert train.main(command(family, "LoRA, one", 4, LORA)) == 0
        for name, (topology, flags, _) in TOPOLOGIES.items():
            launched += [topology, *command(family, name, 2, flags)]
    run_processes(["tests/processes/drivers/fsdp_cpu.py", *launched])
    return root


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("family", OTHERS)
def test_two_processes_take_the_trajectory_of_one(runs, family, topology):
    assert_one_trajectory(runs / family / topology, runs / family / TOPOLOGIES[topology][2])
