"""`dpdmd.train` end to end on a tiny random pipeline: output, counters, resume, export, non-finite losses."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

from dpdmd import export, train
from dpdmd.config import read_yaml
from dpdmd.data.prompt_files import read_prompts
from dpdmd.data.prompts import fingerprint
from dpdmd.methods import updates
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sd35.family import SD35, SD35TextEncoder
from dpdmd.models.sd35.layout import read_schedule
from dpdmd.run_folder import LATEST, RunFolder
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training import trainer
from dpdmd.training.batches import Batches
from dpdmd.training.checkpoint import identify_models
from dpdmd.training.trainer import Trainer
from dpdmd.utils.manifest import read_manifest
from dpdmd.utils.rng import normal_per_sample

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def flags(short_run: list[str]) -> list[str]:
    return [*short_run, "--vis_every", "6"]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state_bytes(checkpoint: Path) -> dict[str, bytes]:
    """Every weight file of a checkpoint."""
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in checkpoint.rglob("*.safetensors")
        if "text" not in str(path)
    }


def test_a_run_writes_all_its_files(flags, tmp_path, tiny_pipeline):
    """One run folder holds log, metrics, configuration, images, checkpoints and a whole student."""
    run = tmp_path / "run"
    assert (
        train.main(
            [*flags, "--run_dir", str(run), "--max_steps", "12", "--ckpt_every", "6", "--report_to", "tensorboard"]
        )
        == 0
    )
    lines = records(run)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["turn"] for line in lines] == (["fake"] * 5 + ["student"]) * 2
    assert {"loss_fake", "grad_norm", "seconds", "samples_per_second", "memory_gb"} <= lines[0].keys()
    assert {"loss_dmd", "loss_div", "loss_student"} <= lines[5].keys() and "loss_fake" not in lines[5]
    assert lines[5]["loss_student"] == pytest.approx(lines[5]["loss_dmd"] + 0.05 * lines[5]["loss_div"], rel=1e-5)
    assert read_yaml(run / "config.yaml").method.k_anchor == 2
    assert "step 10 fake" in (run / "log" / "log.txt").read_text()
    assert list((run / "log").rglob("events.out.tfevents.*"))
    image = Image.open(run / "process_vis" / "latest.png")
    assert image.width >= 2 * 64 and image.height >= 3 * 64
    assert os.readlink(run / "ckpts" / "latest") == "step_000012"
    middle, last = (run / "ckpts" / name / "student" for name in ("step_000006", "step_000012"))
    assert (middle / "text_encoder").is_symlink() and (
        middle / "text_encoder"
    ).resolve() == tiny_pipeline / "text_encoder"
    assert not any(path.is_symlink() for path in last.rglob("*"))


def test_sixty_iterations_with_a_resume_in_the_middle(flags, tmp_path):
    """5 fake updates a student update; the resumed run's weights, moments and records equal the uninterrupted run's."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = ["--ckpt_every", "31"]
    assert train.main([*flags, *every, "--run_dir", str(whole), "--max_steps", "60"]) == 0
    assert train.main([*flags, *every, "--run_dir", str(parts), "--max_steps", "33"]) == 0
    # As after a kill: steps 32 and 33 are in the record, but the newest checkpoint is that of step 31.
    shutil.rmtree(parts / "ckpts" / "step_000033")
    os.unlink(parts / "ckpts" / "latest")
    os.symlink("step_000031", parts / "ckpts" / "latest")
    assert (
        train.main([*flags, *every, "--run_dir", str(parts), "--max_steps", "60", "--resume_from_checkpoint", "latest"])
        == 0
    )
    manifest = json.loads((parts / "ckpts" / "step_000060" / "manifest.json").read_text())
    prompts = read_prompts(Path(flags[flags.index("--prompt_txt") + 1]))
    progress = {"step": 60, "updates": {"student": 10, "fake": 50}, "global_batch_size": 2}
    models = identify_models(read_yaml(parts / "config.yaml"))
    found = {"prompts": fingerprint(prompts), "models": models, "total_steps": 60, "left_behind": []}
    assert manifest["progress"] == progress | found
    assert state_bytes(whole / "ckpts" / "step_000060") == state_bytes(parts / "ckpts" / "step_000060")
    kept = ("step", "turn", "loss_fake", "loss_student", "grad_norm")
    assert [{k: r.get(k) for k in kept} for r in records(whole)] == [
        {k: r.get(k) for k in kept} for r in records(parts)
    ]


def test_nothing_of_a_checkpoint_comes_from_global_random_state(flags, tmp_path):
    """Another global seed, the same run: every draw is named."""
    first, second = tmp_path / "first", tmp_path / "second"
    torch.manual_seed(1)
    assert train.main([*flags, "--run_dir", str(first), "--max_steps", "6"]) == 0
    torch.manual_seed(2)
    torch.randn(100)
    assert train.main([*flags, "--run_dir", str(second), "--max_steps", "6"]) == 0
    assert state_bytes(first / "ckpts" / "step_000006") == state_bytes(second / "ckpts" / "step_000006")


@pytest.mark.parametrize("method", ["dpdmd", "dmd"])
def test_only_the_right_networks_move(flags, tmp_path, tiny_pipeline, monkeypatch, method):
    """A fake-score update changes only the fake score, a student update only the student, and none the teacher."""
    teacher = load_file(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    trained, build = [], Trainer.__init__

    def kept(self, *arguments, **more):
        build(self, *arguments, **more)
        trained.append(self)

    monkeypatch.setattr(Trainer, "__init__", kept)
    run = tmp_path / "run"
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "6", "--ckpt_every", "5", "--method", method]) == 0
    in_memory = trained[0].run.networks.teacher.state_dict()
    assert all(torch.equal(in_memory[name], value) for name, value in teacher.items())

    def moved(step: int, part: str) -> float:
        network = load_file(run / "ckpts" / f"step_{step:06d}" / part)
        return max((network[name] - teacher[name]).abs().max().item() for name in teacher)

    student, fake = "student/transformer/diffusion_pytorch_model.safetensors", "state/fake.safetensors"
    assert moved(5, student) == 0 and moved(5, fake) > 1e-4
    assert moved(6, student) > 1e-4 and moved(6, fake) == moved(5, fake)


@pytest.mark.parametrize("sigmas", ["default", "trailing", "1.0,0.6", "1.0,0.86,0.6,0.3"])
def test_exported_student_is_a_diffusers_pipeline(flags, tmp_path, sigmas):
    """diffusers loads the export and samples what our own sampler samples, from the number of steps if it can."""
    run, steps = tmp_path / "run", sigmas.count(",") + 1 if "," in sigmas else 2
    more = ["--student_sigmas", sigmas, "--stu_inference_steps", str(steps)]
    assert train.main([*flags, *more, "--run_dir", str(run), "--max_steps", "6"]) == 0
    student = run / "ckpts" / "latest" / "student"
    pipe = StableDiffusion3Pipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((student / "dpdmd.json").read_text())
    eps = normal_per_sample((8, 8, 8), 0, "picture", 0, [0])
    call = {"num_inference_steps": steps} if steps == 2 else {"sigmas": [1.0, 0.86, 0.6, 0.3]}
    assert (defaults["sigmas_argument"] is None) == (steps == 2)
    theirs = pipe(
        "a red circle", latents=eps, guidance_scale=1.0, max_sequence_length=10, output_type="latent", **call
    ).images
    sampler, encoder = load_sampler(run, CPU)
    ours = sampler.latents(encoder.encode(["a red circle"]), eps)
    # The same arithmetic in fp32; diffusers rounds its sigmas in another order (1 unit in the last place).
    assert (ours - theirs).abs().max() < 1e-4 and theirs.std() > 0.1


def test_another_number_of_steps_is_taken_on_the_grid_of_that_name(flags, tmp_path):
    """The exported scheduler is made for the student's own two sigmas: not for eight, nor for another student."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    shift = read_schedule(Path(flags[flags.index("--teacher_id") + 1])).shift
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "1", "--student_sigmas", "trailing"]) == 0
    assert export.main(["--model", str(run), "--out", str(whole)]) == 0
    for model in (run, whole):
        sampler, _ = load_sampler(model, CPU, steps=8)
        assert shift != 1 and torch.equal(sampler.settings.sigmas, FlowSchedule(shift).trailing_sigmas(8))
    stored = json.loads((whole / "scheduler" / "scheduler_config.json").read_text())
    assert stored["shift_terminal"] == pytest.approx(FlowSchedule(shift).trailing_sigmas(2)[1].item())
    again = [*flags, "--teacher_id", str(whole), "--run_dir", str(tmp_path / "again"), "--max_steps", "1"]
    assert train.main(again) == 0
    grids = [load_sampler(tmp_path / "again", CPU)[0].settings.sigmas, FlowSchedule(shift).default_sigmas(2)]
    assert torch.equal(*grids)
    back = json.loads((tmp_path / "again/ckpts/latest/student/scheduler/scheduler_config.json").read_text())
    assert (back["shift"], back["shift_terminal"]) == (shift, None)


@pytest.mark.parametrize("grid", ["trailing", "default"])
def test_exports_of_older_versions_keep_their_meaning(tiny_pipeline, tmp_path, grid):
    """They have shift 1 in the scheduler's file, and the model's own in dpdmd.json, or the model's own in both."""
    shift = read_schedule(tiny_pipeline).shift
    sigmas = FlowSchedule(shift).named_sigmas(grid, 2).tolist()
    old = Path(shutil.copytree(tiny_pipeline, tmp_path / "old"))
    written = {"steps": 2, "guidance_scale": 1.0, "max_sequence_length": 10, "sigmas": sigmas, "grid": grid}
    (old / "dpdmd.json").write_text(json.dumps(written | {"shift": shift if grid == "trailing" else None}))
    path = old / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ({"shift": 1.0} if grid == "trailing" else {})))
    assert load_sampler(old, CPU)[0].settings.sigmas.tolist() == pytest.approx(sigmas)
    eight = load_sampler(old, CPU, steps=8)[0].settings.sigmas
    assert torch.equal(eight, FlowSchedule(shift).named_sigmas(grid, 8))
    assert export.main(["--model", str(old), "--out", str(tmp_path / "new")]) == 0
    assert SD35(CPU, torch.float32).library_sigmas(tmp_path / "new").tolist() == pytest.approx(sigmas, abs=1e-5)


def test_a_nonfinite_loss_stops_before_the_optimizer(flags, tmp_path, monkeypatch, capsys):
    """The message names the loss, and the last checkpoint is what it was."""
    run = tmp_path / "run"
    healthy = updates.student_loss

    def poisoned(run_, batch):
        result = healthy(run_, batch)
        result.metrics["loss_dmd"] = result.metrics["loss_dmd"] * float("nan")
        return result

    monkeypatch.setattr(updates, "student_loss", poisoned)
    assert train.main([*flags, "--run_dir", str(run), "--max_steps", "12", "--ckpt_every", "5"]) == 1
    assert "loss_dmd is nan" in capsys.readouterr().err
    assert os.readlink(run / "ckpts" / "latest") == "step_000005"
    assert len(records(run)) == 5


def test_checkpoints_total_limit_keeps_the_newest(flags, tmp_path):
    run = tmp_path / "run"
    assert (
        train.main(
            [*flags, "--run_dir", str(run), "--max_steps", "6", "--ckpt_every", "2", "--checkpoints_total_limit", "2"]
        )
        == 0
    )
    assert sorted(p.name for p in (run / "ckpts").iterdir()) == ["latest", "step_000004", "step_000006"]


def test_checkpoints_of_steps_that_are_trained_again_are_the_oldest(flags, tmp_path):
    """The limit would keep the two that were left, and delete each new one."""
    run = tmp_path / "run"
    flags = [*flags, "--run_dir", str(run), "--ckpt_every", "2"]
    assert train.main([*flags, "--max_steps", "8"]) == 0
    back = ["--resume_from_checkpoint", str(run / "ckpts" / "step_000002"), "--checkpoints_total_limit", "2"]
    assert train.main([*flags, "--max_steps", "5", *back]) == 0
    assert sorted(p.name for p in (run / "ckpts").iterdir()) == ["latest", "step_000004", "step_000005"]
    left_behind = [read_manifest(run / "ckpts" / f"step_{step:06d}")["progress"]["left_behind"] for step in (4, 5)]
    assert left_behind == [[6, 8], [6, 8]]  # 4 is of the new way; the others were deleted later


def test_gradients_are_clipped_at_the_norm_of_the_flag(flags, tmp_path, monkeypatch):
    norms, healthy = [], trainer.apply_update

    def watched(*arguments):
        norms.append(arguments[-1])
        return healthy(*arguments)

    monkeypatch.setattr(trainer, "apply_update", watched)
    assert train.main([*flags, "--max_grad_norm", "0.25", "--max_steps", "6", "--run_dir", str(tmp_path / "run")]) == 0
    assert norms == [0.25] * 6


def test_a_run_that_runs_out_of_memory_continues_with_gradient_checkpointing(flags, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*flags, "--run_dir", str(whole), "--max_steps", "6"]) == 0
    assert train.main([*flags, "--run_dir", str(parts), "--max_steps", "3"]) == 0
    again = ["--resume_from_checkpoint", "latest", "--gradient_checkpointing"]
    assert train.main([*flags, *again, "--run_dir", str(parts), "--max_steps", "6"]) == 0
    assert state_bytes(whole / "ckpts" / "step_000006") == state_bytes(parts / "ckpts" / "step_000006")


def test_fake_score_updates_share_a_rollout(flags, tmp_path, monkeypatch):
    """Two updates share prompts and samples of the first; score times and noise are their own."""
    calls, healthy = [], updates.fake_score_loss

    def watched(run, batch):
        result = healthy(run, batch)
        calls.append((batch.step, batch.rollout_step, result.latents["student"]))
        return result

    monkeypatch.setattr(updates, "fake_score_loss", watched)
    reuse = ["--fake_rollout_reuse", "2", "--max_steps", "7"]
    assert train.main([*flags, *reuse, "--run_dir", str(tmp_path / "run")]) == 0
    assert [(step, source) for step, source, _ in calls] == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4), (6, 6)]
    samples = [x for _, _, x in calls]
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[2], samples[3])
    assert not torch.allclose(samples[0], samples[2]) and not torch.allclose(samples[4], samples[5])
    losses = [record["loss_fake"] for record in records(tmp_path / "run") if record["turn"] == "fake"]
    assert len(set(losses)) == 6


def test_a_resume_between_updates_that_share_a_rollout(flags, tmp_path):
    """The roll-out is computed again, with the same bytes."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = [*flags, "--fake_rollout_reuse", "5", "--anchor_steps", "1", "--ckpt_every", "3"]
    assert train.main([*more, "--run_dir", str(whole), "--max_steps", "9"]) == 0
    assert train.main([*more, "--run_dir", str(parts), "--max_steps", "3"]) == 0
    resume = ["--resume_from_checkpoint", "latest"]
    assert train.main([*more, *resume, "--run_dir", str(parts), "--max_steps", "9"]) == 0
    assert state_bytes(whole / "ckpts" / "step_000009") == state_bytes(parts / "ckpts" / "step_000009")


def test_a_head_start_of_the_fake_score_with_a_resume_in_the_middle(flags, tmp_path):
    """Seven fake updates, then the usual cycles; a run resumed within the head start ends with the same bytes."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = [*flags, "--fake_head_start", "7", "--fake_rollout_reuse", "2", "--ckpt_every", "5"]
    assert train.main([*more, "--run_dir", str(whole), "--max_steps", "60"]) == 0
    assert [line["turn"] for line in records(whole)] == ["fake"] * 7 + (["fake"] * 5 + ["student"]) * 8 + ["fake"] * 5
    shutil.copytree(whole, parts, symlinks=True)
    folder = RunFolder.of(parts)
    for path in folder.checkpoints()[1:]:
        shutil.rmtree(path)
    folder.point(LATEST, folder.checkpoint(5))
    resume = ["--resume_from_checkpoint", "latest"]
    assert train.main([*more, *resume, "--run_dir", str(parts), "--max_steps", "60"]) == 0
    for run in (whole, parts):
        manifest = json.loads((run / "ckpts" / "step_000060" / "manifest.json").read_text())
        assert manifest["progress"]["step"] == 60
        assert manifest["progress"]["updates"] == {"student": 8, "fake": 52}
    assert state_bytes(whole / "ckpts" / "step_000060") == state_bytes(parts / "ckpts" / "step_000060")
    assert (
        Image.open(whole / "process_vis" / "latest.png").size == Image.open(parts / "process_vis" / "latest.png").size
    )


def test_images_are_shown_once_a_head_start_is_over(flags, tmp_path, monkeypatch):
    """A multiple of `vis_every` within the head start is shown by the first student update."""
    shown, healthy = [], Trainer._show_images
    monkeypatch.setattr(
        Trainer, "_show_images", lambda self, pending: shown.append(pending.step) or healthy(self, pending)
    )
    more = ["--fake_head_start", "6", "--per_train_fake_num", "1", "--vis_every", "5", "--max_steps", "14"]
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "run")]) == 0
    assert shown == [7, 9]  # 5 lies in the head start, 10 in the cycle of steps 9 and 10


def test_prompts_that_updates_share_are_encoded_once(flags, tmp_path, monkeypatch):
    """Each roll-out's prompts are encoded once, and the checkpoint has the same bytes as without that."""
    encoded, healthy = [], SD35TextEncoder.encode
    monkeypatch.setattr(
        SD35TextEncoder, "encode", lambda self, prompts: encoded.append(prompts) or healthy(self, prompts)
    )
    more = [*flags, "--vis_every", "0", "--fake_rollout_reuse", "2", "--max_steps", "7"]
    once, anew = tmp_path / "once", tmp_path / "anew"
    assert train.main([*more, "--run_dir", str(once)]) == 0
    steps = [prompts for prompts in encoded if prompts != [""]]
    assert len(steps) == 5  # roll-outs of steps 1, 3, 5, 6 and 7
    encoded.clear()
    of_step = Batches.of_step

    def forgetful(self, step, encoder):
        self._encoded = None
        return of_step(self, step, encoder)

    monkeypatch.setattr(Batches, "of_step", forgetful)
    assert train.main([*more, "--run_dir", str(anew)]) == 0
    assert len([prompts for prompts in encoded if prompts != [""]]) == 7
    assert state_bytes(once / "ckpts" / "step_000007") == state_bytes(anew / "ckpts" / "step_000007")


def test_a_run_draws_its_prompts_by_their_weights(flags, tmp_path, capfd):
    """A resumed run equals one in one piece; with other weights it is an error, also if the prompts are the same."""
    path = tmp_path / "weighted.csv"
    path.write_text("prompt,often\na red circle,3\na small cross,1\na triangle,0\n")
    more = [*flags, "--prompt_txt", str(path), "--prompt_weight_column", "often", "--ckpt_every", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*more, "--run_dir", str(whole), "--max_steps", "12"]) == 0
    said = (whole / "log" / "log.txt").read_text()
    assert f"2 in {path}, drawn by the column often: " in said and "triangle" not in said
    assert train.main([*more, "--run_dir", str(parts), "--max_steps", "6"]) == 0
    resumed = [*more, "--run_dir", str(parts), "--max_steps", "12", "--resume_from_checkpoint", "latest"]
    path.write_text("prompt,often\na red circle,1\na small cross,1\na triangle,0\n")
    assert train.main(resumed) == 2
    assert f"--prompt_txt {path}: not the prompts and weights that" in capfd.readouterr().err
    path.write_text("often,prompt\n3,a red circle\n1,a small cross\n")  # the same content in another form
    assert train.main(resumed) == 0
    network = "ckpts/step_000012/student/transformer/diffusion_pytorch_model.safetensors"
    assert (whole / network).read_bytes() == (parts / network).read_bytes()
    unweighted = [*flags, "--prompt_txt", str(path), "--run_dir", str(tmp_path / "equal"), "--max_steps", "12"]
    assert train.main(unweighted) == 0
    norms = [[line["grad_norm"] for line in records(run)] for run in (whole, tmp_path / "equal")]
    assert norms[0] != norms[1]
