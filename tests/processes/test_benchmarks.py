"""The benchmarks that no other test starts run from beginning to end and write what they measured."""

import importlib
import json
import sys
from pathlib import Path

import gpu_sd35
import pytest
import rehearsal
import scorers
import train_step
from step_report import EVALUATION, FLOOR, OURS, RELEASE, RELEASE_EVALUATION, SAVING

ROOT = Path(__file__).parents[2]


def test_train_step_times_all_variants(short_run, tiny_scorers, tmp_path, monkeypatch):
    scorers = [part for name, path in tiny_scorers.items() for part in (f"--{name}", path)]
    prompts = "data/shapes_train.txt"
    scorers += [
        "--div_prompts",
        prompts,
        "--pref_prompts",
        prompts,
        "--eval_prompts_limit",
        "2",
        "--num_div_seeds",
        "2",
    ]
    flags = [*short_run, "--prompt_txt", prompts, *scorers, "--max_steps", "600"]
    flags += ["--fake_rollout_reuse", "5", "--anchor_steps", "1"]
    own = ["--cycles", "2", "--evaluations", "1", "--against", "--fake_rollout_reuse 1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *own, *flags])
    monkeypatch.chdir(ROOT)
    train_step.main()
    (found,) = tmp_path.glob("*_train_step.json")
    seconds = json.loads(found.read_text())["seconds"]
    for name, count in ((FLOOR, 2), (OURS, 2), (RELEASE, 2), (EVALUATION, 1), (SAVING, 1), (RELEASE_EVALUATION, 1)):
        assert len(seconds[name]) == count and min(seconds[name]) > 0
    # Five fake-score updates share a roll-out, and the teacher takes one step of two: fewer calls than the release.
    assert min(seconds[RELEASE]) > max(seconds[OURS])
    (table,) = tmp_path.glob("*_train_step.md")
    assert f"- {RELEASE} to {OURS}: " in table.read_text()


@pytest.mark.parametrize("family", ["sd35", "flux2_klein"])
def test_gpu_sd35_measures_row_by_row(family, tmp_path, monkeypatch):
    """A small model on this device: a row of eager training, and rows that say that no time was left."""
    started = gpu_sd35.measure

    def then_out_of_time(trainer, cycles, flops, compiled):
        found = started(trainer, cycles, flops, compiled)
        monkeypatch.setattr(gpu_sd35.time, "monotonic", lambda: 1e9)
        return found

    monkeypatch.setattr(gpu_sd35, "measure", then_out_of_time)
    monkeypatch.setattr(
        sys, "argv", ["gpu_sd35.py", "--family", family, "--tiny", "--batch_sizes", "1", "--out", str(tmp_path)]
    )
    gpu_sd35.main()
    (found,) = tmp_path.glob(f"*_gpu_{family}_tiny.json")
    first, *rest = json.loads(found.read_text())["runs"]
    assert first["trained"] == "LoRA 64" and first["fake_seconds"] > 0 and first["cycle_flops"] > 1e9
    assert first["cycle_seconds"] == pytest.approx(5 * first["fake_seconds"] + first["student_seconds"])
    assert len(rest) == 5 + len(gpu_sd35.QUANTIZED) and {run["failure"] for run in rest} == {"not run: out of time"}


def test_scorers_times_both(tiny_scorers, tmp_path, monkeypatch):
    root = Path(tiny_scorers["clip_path"]).parent
    own = ["--root", str(root), "--num_images", "2", "--evaluations", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scorers.py", *own])
    scorers.main()
    (table,) = tmp_path.glob("*_scorers.md")
    assert "2 images, four scorers" in table.read_text() and f"| {scorers.RELEASE} | " in table.read_text()


@pytest.mark.parametrize("program", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_finds_what_it_imports(program):
    assert importlib.import_module(program).__doc__


def test_a_rehearsal_without_weights_checks_the_run(tiny_pipeline, tmp_path, monkeypatch, capsys):
    work, only = tmp_path / "work" / "rehearsal_sd35", "checks of dpdmd.train"
    work.mkdir(parents=True)
    (work / "teacher").symlink_to(tiny_pipeline)
    own = ["sd35", "--hollow", "--work", str(work.parent), "--only", only, "--keep", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["rehearsal.py", *own, "--height", "64", "--width", "64"])
    assert rehearsal.main() == 0
    (table,) = tmp_path.glob("*_rehearsal_sd35.md")
    assert table.read_text() == capsys.readouterr().out and f"| {only} | 0 | " in table.read_text()
    assert "all checks pass" in (work / f"{only}.log").read_text()
    monkeypatch.setattr(sys, "argv", ["rehearsal.py", *own, "--height", "63"])
    assert rehearsal.main() == 1
    assert f"| {only} | 1 | " in table.read_text()
