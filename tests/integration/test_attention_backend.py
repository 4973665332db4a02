"""`--attention_backend` over runs: in every network, in evaluation, on resume, and in the doctor."""

import shutil
from pathlib import Path

import pytest
import torch

from dpdmd import config, doctor, train
from dpdmd.evaluation.in_loop import InLoopEvaluation
from dpdmd.methods.networks import blocks_owner, load_networks
from dpdmd.models.attention_backend import BackendAttention
from dpdmd.models.sd35.family import SD35

WEIGHTS = "ckpts/step_000006/student/transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("lora", [[], ["--lora_rank", "2"]], ids=["full", "lora"])
def test_all_three_networks_use_it(tiny_pipeline, lora):
    parsed = config.parse(["--teacher_id", str(tiny_pipeline), "--attention_backend", "native", *lora])
    networks = load_networks(parsed, SD35(torch.device("cpu"), torch.float32))
    for network in vars(networks).values():
        processors = blocks_owner(network).attn_processors.values()
        assert processors and all(isinstance(each, BackendAttention) for each in processors)


def test_a_run_is_the_run_without_it_and_a_resumed_run_may_have_another(short_run, finished, tmp_path, tiny_scorers):
    """`native` is torch's own attention. `_native_math` sums in another order."""
    flags = [*short_run, "--ckpt_every", "2", "--vis_every", "0", "--max_steps", "6"]
    run = tmp_path / "native"
    assert train.main([*flags, "--run_dir", str(run), "--attention_backend", "native"]) == 0
    assert (run / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes()
    assert config.read_yaml(run / "config.yaml").optim.attention_backend == "native"
    other = Path(shutil.copytree(finished, tmp_path / "other", symlinks=True))
    resumed = ["--run_dir", str(other), "--resume_from_checkpoint", str(other / "ckpts" / "step_000004")]
    assert train.main([*flags, *resumed, "--attention_backend", "_native_math"]) == 0


def test_evaluation_samples_with_it(short_run, tmp_path, tiny_scorers, monkeypatch):
    seen, evaluate = [], InLoopEvaluation.evaluate

    def watched(self, step):
        samplers = [*self.student.values(), *self.teacher.values()]
        seen.extend(next(iter(sampler.network.attn_processors.values())) for sampler in samplers)
        return evaluate(self, step)

    monkeypatch.setattr(InLoopEvaluation, "evaluate", watched)
    flags = ["--dino_path", tiny_scorers["dino_path"], "--num_div_seeds", "2", "--eval_prompts_limit", "1"]
    flags += ["--run_dir", str(tmp_path / "run"), "--max_steps", "1", "--vis_every", "0"]
    assert train.main([*short_run, *flags, "--attention_backend", "_native_math"]) == 0
    assert seen and all(isinstance(each, BackendAttention) for each in seen)


def test_the_doctor_checks_a_trainer_with_it(short_run, tmp_path, capsys):
    command = [*short_run, "--out", str(tmp_path / "doctor"), "--attention_backend"]
    assert doctor.main([*command, "sage"]) == 2
    assert "dpdmd.doctor: error: --attention_backend sage: does not work here (Sage Att" in capsys.readouterr().err
    assert doctor.main([*command, "_native_math"]) == 0
