"""`--optimizer adamw_8bit`: a run that is resumed, alone and on two processes."""

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("bitsandbytes", reason="pip install -e '.[memory]'")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_resumed_half_way_ends_in_the_same_bytes(short_run, run_processes, tmp_path, processes):
    """Through checkpoints, alone and under DDP."""
    each = "2" if processes == 1 else "1"
    command = ["-m", "dpdmd.train", *short_run, "--batch_size", each, "--optimizer", "adamw_8bit"]
    command += ["--per_train_fake_num", "1", "--vis_every", "0"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_processes([*command, "--max_steps", "4", "--run_dir", str(whole)], processes)
    for steps in ("2", "4"):
        more = ["--max_steps", steps, "--run_dir", str(parted), "--resume_from_checkpoint", "latest"]
        run_processes([*command, *more], processes)
    last = "ckpts/step_000004/state"
    for file in ("fake", "optimizer_student", "optimizer_fake"):
        ours, theirs = (load_file(root / last / f"{file}.safetensors") for root in (whole, parted))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(value.dtype == torch.uint8 for value in ours.values())
