"""LoRA under FSDP2: the frozen base is sharded, each process trains whole adapters, and no result depends on that."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from trajectories import assert_equal_bits, assert_one_trajectory, copy_until

from dpdmd import train
from dpdmd.run_folder import LATEST

DRIVER = "tests/processes/drivers/fsdp_cpu.py"
STEPS, MIDDLE = 4, 2
SCORED = "sd35"  # the case that is evaluated in the loop
CASES = {
    SCORED: ["--ema_decay", "0.9", "--lora_dropout", "0.1", "--gradient_checkpointing"],
    "dmd_gan": ["--method", "dmd_gan", "--gradient_checkpointing", "--grad_steps", "random"],
}
UNDER_DDP = {  # compared with DDP: rounding to bf16 or to 8 bits depends on how a batch is divided
    "bf16": ["--bf16", "--gradient_checkpointing"],
    **({"8 bits": ["--optimizer", "adamw_8bit", "--lora_rank", "64"]} if find_spec("bitsandbytes") else {}),
}


@pytest.fixture(scope="module")
def runs(tiny_scorers, short_run, run_processes, tmp_path_factory) -> tuple[Path, str]:
    """Run all cases in one launch; return the folder of the runs, and what the processes printed."""
    root = tmp_path_factory.mktemp("lora_sharding")
    common = [
        *(*short_run, "--per_train_fake_num", "1", "--max_grad_norm", "0.05", "--vis_every", "0"),
        *("--ckpt_every", str(MIDDLE), "--lora_rank", "2", "--lora_alpha", "6", "--fake_lora_rank", "4"),
    ]
    scored = [
        *("--clip_path", tiny_scorers["clip_path"], "--div_prompts", short_run[short_run.index("--prompt_txt") + 1]),
        *("--eval_prompts_limit", "2", "--num_div_seeds", "2", "--eval_every", str(STEPS)),
    ]

    def command(case: str, name: str, *more: str, steps: int = STEPS, batch: tuple[int, int] = (1, 2)) -> list[str]:
        flags = [*common, *({**CASES, **UNDER_DDP}[case]), *(scored if case == SCORED else []), *more]
        flags += ["--batch_size", str(batch[0]), "--grad_accum", str(batch[1]), "--max_steps", str(steps)]
        return [*flags, "--run_dir", str(root / name)]

    alone, resumed = (4, 1), ("--resume_from_checkpoint", LATEST)
    for case in CASES:
        assert train.main(command(case, f"{case}, one", batch=alone)) == 0
    copy_until(root / f"{SCORED}, one", MIDDLE, root / "one, then FSDP2")
    launched = [
        *command(SCORED, "parted", steps=MIDDLE),
        *("+FSDP2", *command(SCORED, "parted", *resumed), "+FSDP2", *command(SCORED, "one, then FSDP2", *resumed)),
    ]
    for case in (*CASES, *UNDER_DDP):
        launched += ["+FSDP2", *command(case, f"{case}, FSDP2")]
    for case in UNDER_DDP:
        launched += ["+whole", *command(case, f"{case}, DDP")]
    printed = run_processes([DRIVER, *launched]).stderr
    copy_until(root / f"{SCORED}, FSDP2", MIDDLE, root / "FSDP2, then one")
    assert train.main(command(SCORED, "FSDP2, then one", *resumed, batch=alone)) == 0
    return root, printed


@pytest.mark.parametrize(
    ("run", "other"),
    [
        *((f"{case}, FSDP2", f"{case}, one") for case in CASES),
        *((f"{case}, FSDP2", f"{case}, DDP") for case in UNDER_DDP),
        ("one, then FSDP2", f"{SCORED}, one"),
        ("FSDP2, then one", f"{SCORED}, one"),
    ],
)
def test_sharding_the_base_changes_a_trajectory_by_rounding_alone(runs, run, other):
    """Weights are gathered as they were, and adapters are averaged as under DDP."""
    assert_one_trajectory(runs[0] / run, runs[0] / other)


def test_a_resumed_run_ends_in_the_same_bytes(runs):
    assert_equal_bits(runs[0] / "parted", runs[0] / f"{SCORED}, FSDP2")


def test_each_process_holds_its_share_of_the_base(runs):
    """A tensor whose first dimension is odd leaves one row more on a process."""
    found = re.findall(r"rank (\d) holds (\d+) of (\d+) frozen numbers", runs[1])
    assert len(found) == 2 * (3 + len(CASES) + len(UNDER_DDP)) and {rank for rank, _, _ in found} == {"0", "1"}
    for _, held, whole in found:
        assert int(held) == pytest.approx(int(whole) / 2, rel=0.02)
