"""Evaluation in the loop and the root programs on tiny random models: output files, resumption and errors."""

import csv
import json
import os
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dpdmd import train
from dpdmd.config import read_yaml
from dpdmd.distributed import collectives
from dpdmd.evaluation import program_run
from dpdmd.evaluation.in_loop import InLoopEvaluation, best_step
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.evaluation.scorers.clip import ClipScore
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.sampler import Sampler
from dpdmd.training.adaptive_weight import weight_factor

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red circle", "ein grünes Dreieck, 猫 и кот", "a shape " * 250]


@pytest.fixture
def prompts_txt(tmp_path: Path) -> str:
    path = tmp_path / "eval.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return str(path)


@pytest.fixture
def flags(tiny_pipeline: Path, tiny_scorers: dict[str, str], prompts_txt: str, tmp_path: Path) -> list[str]:
    """Return the flags of a short run with all five in-loop scorers."""
    scorers = [part for flag, path in tiny_scorers.items() for part in (f"--{flag}", path)]
    return [
        *("--teacher_id", str(tiny_pipeline), "--prompt_txt", prompts_txt, "--height", "64", "--width", "64"),
        *("--teacher_infer_steps", "2", "--k_anchor", "1", "--stu_inference_steps", "2", "--batch_size", "1"),
        *("--lr_student", "1e-2", "--lr_fake", "1e-3", "--report_to", "none", "--ckpt_every", "6"),
        *("--div_prompts", prompts_txt, "--pref_prompts", prompts_txt, "--num_div_seeds", "3"),
        *("--eval_prompts_limit", "2", "--run_dir", str(tmp_path / "run"), *scorers),
    ]


def evaluations(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["turn"] == "eval"]


def test_lambda_follows_the_diversity_of_the_evaluations(flags, tiny_scorers, tmp_path, capsys):
    """Each student update has the factor of the evaluations before it, also in a run that was resumed between two."""
    first = next(index for index, flag in enumerate(flags) if flag in {f"--{name}" for name in tiny_scorers})
    flags = [*flags[:first], "--dino_path", tiny_scorers["dino_path"], "--div_weight_schedule", "adaptive"]
    flags += ["--per_train_fake_num", "1", "--ckpt_every", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*flags, "--max_steps", "6", "--run_dir", str(whole)]) == 0
    for steps in ("2", "6"):
        more = ["--max_steps", steps, "--resume_from_checkpoint", "latest"]
        assert train.main([*flags, *more, "--run_dir", str(parts)]) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    resumed = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    students = [line for line in lines if line["turn"] == "student"]
    scored = [line for line in lines if line["turn"] == "eval"]
    method = read_yaml(whole / "config.yaml").method
    expected = [0.05 * weight_factor(scored[:count], method) for count in (1, 2, 3)]
    assert [line["div_weight"] for line in students] == pytest.approx(expected, rel=1e-6)
    assert students[0]["div_weight"] == pytest.approx(0.05) and len(set(expected)) == 3
    for line in students:
        loss = line["loss_dmd"] + line["div_weight"] * line["loss_div"]
        assert line["loss_student"] == pytest.approx(loss, rel=1e-5)
    kept = [line for line in resumed if line["turn"] == "student"]
    assert [line["loss_student"] for line in kept] == [line["loss_student"] for line in students]
    more = ["--max_steps", "8", "--resume_from_checkpoint", str(parts / "ckpts" / "step_000006")]
    assert train.main([*flags, *more, "--run_dir", str(tmp_path / "other")]) == 2
    assert "give that run's --run_dir" in capsys.readouterr().err


def rows_of(folder: Path) -> list[dict]:
    with (folder / "per_image.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_evaluated_before_during_and_at_the_end(flags, tmp_path, monkeypatch):
    """All scorers see one set of images; a resumed run repeats neither the teacher's scores nor a step's."""
    run = tmp_path / "run"
    assert train.main([*flags, "--max_steps", "12"]) == 0
    found = evaluations(run)
    assert [line["step"] for line in found] == [0, 6, 12]
    names = {
        *("eval/eval_div_clip", "eval/eval_div_dino", "eval/eval_preference_pickscore"),
        *("eval/eval_preference_pickscore_release", "eval/eval_preference_imagereward"),
        "eval/eval_preference_clip_score",
    }
    assert {name for name in found[0] if name.startswith("eval/") and name.count("_low") == 0} >= names
    for name in names:
        assert found[0][f"{name}_low"] <= found[0][name] <= found[0][f"{name}_high"]
        assert found[0][f"{name}_teacher"] == found[2][f"{name}_teacher"]
    assert found[0]["eval/eval_div_clip"] != found[2]["eval/eval_div_clip"]  # the student moved
    release = found[0]["eval/eval_preference_pickscore_release"]
    assert release == pytest.approx(found[0]["eval/eval_preference_pickscore"] / 26)
    assert "evaluation at step 12" in (run / "log" / "log.txt").read_text()
    assert {path.name for path in (run / "div_vis" / "eval").iterdir()} == {"00000.png", "00001.png"}
    assert len(list((run / "eval_images" / "eval").iterdir())) == 2 * 3
    sets = [ImageSet("eval", [], 3, ("div_clip", "div_dino", "pickscore", "imagereward", "clip_score"))]
    best = best_step(found, {6, 12}, sets, "mean_rank")
    assert os.readlink(run / "ckpts" / "best") == f"step_{best:06d}"

    passes, score = [], InLoopEvaluation._score

    def counted(self, sampler, title, folder, *, show):
        passes.append(title)
        return score(self, sampler, title, folder, show=show)

    monkeypatch.setattr(InLoopEvaluation, "_score", counted)
    damaged = run / "eval_images" / "teacher" / "eval" / "00000_000.png"
    damaged.write_bytes(b"")
    assert train.main([*flags, "--max_steps", "18", "--resume_from_checkpoint", "latest"]) == 0
    assert passes == ["step 18"]
    assert f"div_vis/ will lack an image: {damaged} cannot be read" in (run / "log" / "log.txt").read_text()
    assert [line["step"] for line in evaluations(run)] == [0, 6, 12, 18]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] != 18 or json.loads(line)["turn"] != "eval"]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")  # as if killed between checkpoint and evaluation
    passes.clear()
    assert train.main([*flags, "--max_steps", "24", "--resume_from_checkpoint", "latest"]) == 0
    assert passes == ["step 18", "step 24"]


def test_an_interrupted_scoring_of_the_teacher_leaves_no_scores(tmp_path, monkeypatch):
    """They would be those of other images."""
    evaluation, folder = object.__new__(InLoopEvaluation), RunFolder.of(tmp_path)
    evaluation.teacher, evaluation.folder = {}, folder
    evaluation.accelerator = SimpleNamespace(is_main_process=True)
    folder.teacher_scores.write_text("{}")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(InLoopEvaluation, "_score", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluation._score_teacher()
    assert not folder.teacher_scores.exists()


def test_scores_of_the_teacher_without_its_images_are_said(tmp_path, caplog):
    """After a resume with another --eval_dir, or once its images are deleted, they are not made again."""
    evaluation, folder = object.__new__(InLoopEvaluation), RunFolder.of(tmp_path)
    evaluation.folder, evaluation.__dict__["_settings"] = folder, {}
    folder.teacher_scores.write_text(json.dumps({"settings": {}, "metrics": {}}))
    evaluation._read_teacher()
    assert f"div_vis/ will lack the teacher's images: {folder.eval_images / 'teacher'} is not there" in caplog.text
    caplog.clear()
    (folder.eval_images / "teacher").mkdir(parents=True)
    evaluation._read_teacher()
    assert not caplog.text


def test_evaluation_does_not_change_training(flags, tmp_path):
    """The weights are equal with and without it: evaluation does not use training's random draws."""
    states = []
    for index, extra in enumerate((["--eval_every", "0"], ["--eval_every", "1", "--offload_scorers"])):
        chosen = [*flags, "--max_steps", "6", "--run_dir", str(tmp_path / str(index)), *extra]
        assert train.main(chosen) == 0
        weights = tmp_path / str(index) / "ckpts/latest/student/transformer/diffusion_pytorch_model.safetensors"
        states.append(weights.read_bytes())
    assert states[0] == states[1]
    assert evaluations(tmp_path / "0") == [] and len(evaluations(tmp_path / "1")) == 7


def test_the_best_checkpoint_outlives_the_limit(flags, tmp_path):
    """With --best_by a scorer, the best checkpoint stays, though --checkpoints_total_limit is 1."""
    run = tmp_path / "run"
    assert train.main([*flags, "--max_steps", "30", "--checkpoints_total_limit", "1", "--best_by", "div_clip"]) == 0
    best = run / "ckpts" / os.readlink(run / "ckpts" / "best")
    assert (best / "student" / "model_index.json").is_file()
    kept = {path.name for path in (run / "ckpts").glob("step_*")}
    assert kept == {best.name, "step_000030"}
    scores = {line["step"]: line["eval/eval_div_clip"] for line in evaluations(run) if line["step"]}
    assert best.name == f"step_{max(scores, key=scores.get):06d}"
    resumed = [*flags, "--max_steps", "36", "--resume_from_checkpoint", "latest", "--best_by", "div_clip"]
    assert train.main([*resumed, "--eval_seed", "1"]) == 0  # other images, whose scores are not compared with these
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["conditions"] for line in lines if line["turn"] == "eval"}
    assert found.pop(36) not in found.values() and len(set(found.values())) == 1
    assert os.readlink(run / "ckpts" / "best") == "step_000036"


def test_images_that_are_not_finite_have_no_scores(flags, tmp_path, monkeypatch):
    """They would be scored as black images. The other images of the batch keep their scores."""
    made = Sampler.images

    def broken(self, text, keys, seed):
        images = made(self, text, keys, seed)
        images[[prompt == 1 for prompt, _ in keys], 0, 3, 3] = float("nan")
        return images

    monkeypatch.setattr(Sampler, "images", broken)
    assert train.main([*flags, "--max_steps", "2", "--eval_batch_size", "2"]) == 0
    found = evaluations(tmp_path / "run")
    assert [line["step"] for line in found] == [0, 2]
    assert all(line["eval/eval_div_clip_missing"] == 3 for line in found)
    assert all(line["eval/eval_preference_pickscore_missing"] == 3 for line in found)
    assert all(line["eval/eval_div_clip"] > 0 for line in found)
    assert "step 2: 1 of 2 images are not finite, and have no scores" in (tmp_path / "run/log/log.txt").read_text()


def test_scorers_are_checked_before_the_start(flags, tmp_path, capsys):
    """An error is one line that names the flag, and nothing is written."""
    for change, flag in (
        (["--clip_path", str(tmp_path / "nowhere")], "--clip_path"),
        (["--dino_path", str(tmp_path)], "--dino_path"),
        (["--ir_model_path", str(tmp_path / "eval.txt")], "--ir_model_path"),
        (["--eval_prompts_limit", "none"], "--eval_prompts_limit"),
        (["--num_div_seeds", "1"], "--num_div_seeds"),
        (["--div_prompts", str(tmp_path / "absent.txt")], "--div_prompts"),
    ):
        assert train.main([*flags, *change]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert flag in lines[-1] and sum("error" in line for line in lines) == 1
    assert not (tmp_path / "run").exists()


def program(name: str):
    """Import a root program."""
    return runpy.run_path(str(ROOT / f"{name}.py"))["PROGRAM"]


@pytest.fixture
def preference(tiny_pipeline, tiny_scorers, prompts_txt, tmp_path) -> list[str]:
    names = ("pick_processor_path", "pick_model_path", "ir_model_path", "ir_med_config", "clip_score_path")
    scorers = [part for name in names for part in (f"--{name}", tiny_scorers[name])]
    return [
        *("--model", str(tiny_pipeline), "--prompts_txt", prompts_txt, "--steps", "2", *scorers),
        *("--num_samples", "3", "--gen_batch_size", "2"),
    ]


def test_programs_write_their_files_and_keep_images(preference, tmp_path, capsys):
    """Images are kept, other settings are an error, and a broken image is generated again."""
    main, out = program("test_preference").main, tmp_path / "out"
    assert main([*preference, "--output_dir", str(out)]) == 0
    rows = rows_of(out)
    keys = [(int(row["prompt_index"]), int(row["sample_index"])) for row in rows]
    assert keys == [(prompt, sample) for prompt in range(3) for sample in range(3)]
    assert rows[3]["prompt"] == PROMPTS[1]
    summary = json.loads((out / "summary.json").read_text())
    values = [float(row["imagereward"]) for row in rows]
    assert summary["metrics"]["imagereward"]["mean"] == pytest.approx(np.mean(values))
    assert summary["metrics"]["imagereward"]["num_prompts"] == 3 and summary["versions"]["torch"]
    assert "imagereward & pickscore" in (out / "table.txt").read_text()
    images = sorted((out / "pictures").glob("*.png"))
    before = {path.name: path.stat().st_mtime_ns for path in images}
    images[0].write_bytes(images[0].read_bytes()[:100])
    assert main([*preference, "--output_dir", str(out)]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in images}
    assert {name for name in before if before[name] != after[name]} == {"00000_000.png", "00000_001.png"}  # their batch
    assert rows_of(out) == rows
    assert main([*preference, "--output_dir", str(out), "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err.splitlines()[-1]
    assert rows_of(out) == rows
    small = ["--batch_size", "1"]
    assert main([*preference, *small, "--output_dir", str(out)]) == 0 and rows_of(out) == rows
    assert main([*preference, "--clip_score_path", "", "--output_dir", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "(clip_score is left out now); give another" in line and f"--images {out / 'pictures'}" in line
    assert rows_of(out) == rows


def test_scores_of_other_images_are_not_overwritten(tiny_scorers, tmp_path, capsys):
    """More scorers of the same images may be written over the results; grids of the earlier call are cleared."""
    for folder, count in (("a", 2), ("b", 1)):
        (tmp_path / folder).mkdir()
        for key in ((prompt, sample) for prompt in range(count) for sample in range(2)):
            Image.new("RGB", (64, 64), (90 * key[1], 0, 0)).save(tmp_path / folder / "{:05d}_{:03d}.png".format(*key))
    main, out = program("test_diversity").main, tmp_path / "out"
    scorers = ["--dino_path", tiny_scorers["dino_path"], "--clip_path"]
    given = ["--prompts_txt", "", "--output_dir", str(out), *scorers]
    assert main([*given, "", "--images", str(tmp_path / "a")]) == 0
    (out / "grids" / "00007.png").write_bytes(b"")
    assert main([*given, tiny_scorers["clip_path"], "--images", f"{tmp_path / 'a'}/."]) == 0
    rows = rows_of(out)
    assert len(rows) == 4 and rows[0]["div_clip"]
    assert [path.name for path in sorted((out / "grids").iterdir())] == ["00000.png", "00001.png"]
    for change, says in (
        (["--images", str(tmp_path / "b")], f"images: '{tmp_path / 'a'}' there, '{tmp_path / 'b'}' now"),
        (["--images", str(tmp_path / "a"), "--seed", "1"], "seed: 0 there, 1 now"),
        (["--images", str(tmp_path / "a"), "--dino_path", ""], "div_dino is left out now"),
    ):
        assert main([*given, tiny_scorers["clip_path"], *change]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"test_diversity.py: error: --output_dir {out}: holds the scores of another call (")
        assert says in line and rows_of(out) == rows
    moved = shutil.copytree(tiny_scorers["dino_path"], tmp_path / "moved")  # the same scorer, whatever its path
    again = [*given, tiny_scorers["clip_path"], "--images", str(tmp_path / "a"), "--dino_path", str(moved)]
    assert main(again) == 0
    weights = load_file(moved / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, moved / "model.safetensors")
    assert main(again) == 2 and "(div_dino has other weights)" in capsys.readouterr().err
    for content, says in (({}, "lacks 'metrics'"), ({"metrics": {}, "settings": {}, "scorers": 5}, "has unexpected")):
        (out / "summary.json").write_text(json.dumps(content))
        assert main([*given, "", "--images", str(tmp_path / "a")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"{out / 'summary.json'} {says}" in line and "so the scores there are unknown; give another" in line


def test_a_call_that_was_ended_while_it_wrote_goes_on(tiny_scorers, tmp_path, monkeypatch):
    """What it leaves is known to be its own, after each of its files."""
    for sample in range(2):
        Image.new("RGB", (64, 64), (90 * sample, 0, 0)).save(tmp_path / f"00000_{sample:03d}.png")
    main, out = program("test_diversity").main, tmp_path / "out"
    given = ["--images", str(tmp_path), "--prompts_txt", "", "--output_dir", str(out), "--clip_path", ""]
    given += ["--dino_path", tiny_scorers["dino_path"]]
    for step in ("write_json", "write_csv", "write_text", "save_image"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"dpdmd.evaluation.program_run.{step}", Mock(side_effect=KeyboardInterrupt))
            main(given)
    assert main(given) == 0 and len(rows_of(out)) == 2 and (out / "grids" / "00000.png").is_file()


def test_a_call_that_gives_no_image_a_score_fails(tiny_scorers, tmp_path, monkeypatch, capsys):
    """Its results are kept, and their notes say why."""
    for sample in range(2):
        Image.new("RGB", (64, 64), (90 * sample, 0, 0)).save(tmp_path / f"00000_{sample:03d}.png")
    monkeypatch.setattr("dpdmd.evaluation.scorers.dino.DinoDiversity.features", Mock(side_effect=RuntimeError("no")))
    out = tmp_path / "out"
    given = ["--images", str(tmp_path), "--prompts_txt", "", "--output_dir", str(out), "--clip_path", ""]
    assert program("test_diversity").main([*given, "--dino_path", tiny_scorers["dino_path"]]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"test_diversity.py: stopped: no image has a score; the notes in {out / 'per_image.csv'} say why"
    assert all("failed: RuntimeError: no" in row["notes"] for row in rows_of(out))


def test_programs_give_the_same_scores_on_two_processes(preference, tmp_path, run_processes):
    """The shards are uneven; images are equal, and scores are equal to 1e-6."""
    for count, folder in ((1, "one"), (2, "two")):
        done = run_processes(["test_preference.py", *preference, "--output_dir", str(tmp_path / folder)], count)
        assert json.loads((tmp_path / folder / "summary.json").read_text())["processes"] == count
        assert re.search(rf"^{count} process(es, each)? on cpu, .*: 9 images of 3 prompts$", done.stderr, re.MULTILINE)
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(one) == len(two) == 9
    for first, second in zip(one, two, strict=True):
        for name in ("imagereward", "pickscore", "clip_score"):
            assert float(first[name]) == pytest.approx(float(second[name]), abs=1e-6)
    made = list((tmp_path / "one" / "pictures").glob("*.png"))
    assert len(made) == 9
    for path in made:
        assert path.read_bytes() == (tmp_path / "two" / "pictures" / path.name).read_bytes()


def test_diversity_of_given_images(tiny_scorers, tmp_path):
    """Identical images have diversity 0; a corrupt image has no scores and is counted."""
    images = tmp_path / "pictures"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for sample in range(4):
        Image.fromarray(noise[0]).save(images / f"00000_{sample:03d}.png")
        Image.fromarray(noise[sample % 2]).save(images / f"00001_{sample:03d}.png")
    (images / "00001_004.png").write_text("no image")
    main, out = program("test_diversity").main, tmp_path / "out"
    scorers = ["--dino_path", tiny_scorers["dino_path"], "--clip_path", tiny_scorers["clip_path"]]
    given = ["--images", str(images), "--prompts_txt", "", "--output_dir", str(out), *scorers]
    assert main(given) == 0
    rows = {(int(row["prompt_index"]), int(row["sample_index"])): row for row in rows_of(out)}
    assert all(abs(float(rows[0, sample]["div_clip"])) < 1e-6 for sample in range(4))
    assert all(float(rows[1, sample]["div_dino"]) > 1e-4 for sample in range(4))
    assert rows[1, 4]["div_dino"] == "" and "cannot be read as an image" in rows[1, 4]["notes"]
    summary = json.loads((out / "summary.json").read_text())["metrics"]["div_dino"]
    assert (summary["num_scored"], summary["num_missing"], summary["num_prompts"]) == (8, 1, 2)


def test_images_of_any_names_are_scored_with_their_prompts(tiny_scorers, tmp_path, caplog):
    """A CSV file, --images_per_prompt and the files' own order give one result; a message names the order."""
    images = tmp_path / "pictures"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for pixels, number in zip(noise, (1, 2, 9, 10), strict=True):
        Image.fromarray(pixels).save(images / f"shot {number}.png")
    prompts = ["a red circle", "a cross"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    rows = [f"shot {number}.png,{prompts[number > 2]}\n" for number in (1, 2, 9, 10)]
    (images / "images.csv").write_text("file,prompt\n" + "".join(rows))
    texts = ["--prompts_txt", str(tmp_path / "prompts.txt")]
    found = []
    for given in (
        ["--images", str(images / "images.csv")],
        ["--images", str(images), *texts],
        ["--images", str(images), *texts, "--images_per_prompt", "2"],
    ):
        out, scorer = tmp_path / f"out{len(found)}", ["--clip_score_path", tiny_scorers["clip_score_path"]]
        others = [f"--{name}=" for name in ("ir_model_path", "pick_model_path", "pick_processor_path")]
        assert program("test_preference").main([*given, *scorer, *others, "--output_dir", str(out)]) == 0
        found.append([(row["prompt"], Path(row["file"]).name, row["clip_score"]) for row in rows_of(out)])
    assert found[0] == found[1] == found[2] and len({score for _, _, score in found[0]}) == 4
    assert [row[:2] for row in found[0]] == [
        *((prompts[0], f"shot {number}.png") for number in (1, 2)),
        *((prompts[1], f"shot {number}.png") for number in (9, 10)),
    ]
    assert caplog.text.count("no name says its prompt, so the images are taken in their order, 2 for each prompt") == 1


def test_a_batch_of_unreadable_images_reaches_no_scorer(tiny_scorers, tmp_path, caplog):
    """With --batch_size 1, the batch of the broken image becomes empty."""
    images = tmp_path / "pictures"
    images.mkdir()
    for sample in range(2):
        Image.new("RGB", (64, 64), (sample * 99, 0, 0)).save(images / f"00000_{sample:03d}.png")
    (images / "00000_002.png").write_text("no image")
    scorers = ["--dino_path", tiny_scorers["dino_path"], "--clip_path", tiny_scorers["clip_path"]]
    given = ["--images", str(images), "--prompts_txt", "", "--output_dir", str(tmp_path / "out"), *scorers]
    assert program("test_diversity").main([*given, "--batch_size", "1"]) == 0
    assert "failed" not in caplog.text
    assert [row["div_clip"] != "" for row in rows_of(tmp_path / "out")] == [True, True, False]


def test_programs_refuse_images_that_are_not_finite(preference, tiny_pipeline, tmp_path, capsys):
    """They would be scored as black images. Files that were there stay."""
    state = load_file(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    state["proj_out.bias"][0] = float("inf")
    torch.save(state, tmp_path / "s.pt")
    given = [*preference, "--model", str(tmp_path / "s.pt"), "--base_model", str(tiny_pipeline)]
    assert program("test_preference").main([*given, "--output_dir", str(tmp_path / "out")]) == 2
    assert "s.pt: its images are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["pictures.json"]


def test_out_of_memory_is_a_one_line_error(preference, tmp_path, monkeypatch, capsys):
    """While images are generated, while a scorer loads, and while it scores: this is not a missing score."""

    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")

    out = ["--output_dir", str(tmp_path / "out")]
    for place, name, says in (
        (Sampler, "images", "lower --gen_batch_size, --height or --width, or give --bf16"),
        (program_run, "build_scorer", "give fewer scorers at a time"),
        (ClipScore, "score", "lower --batch_size"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            assert program("test_preference").main([*preference, *out]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"test_preference.py: stopped: out of memory; {says}") and "allocate 2 GiB" in line


def test_a_rank_that_runs_out_of_memory_ends_the_others(preference, tmp_path, run_processes):
    """Each rank prints the error itself: none waits for the launcher to kill it."""
    given = ["tests/processes/drivers/starved_rank.py", *preference, "--output_dir", str(tmp_path / "out")]
    done = run_processes(given, check=False)
    assert done.returncode == 1 and done.stderr.count("test_preference.py: stopped: out of memory; lower") == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError, 2), (OSError, 1), (MemoryError, 1)])
def test_an_error_of_all_ranks_leaves_no_process_group(preference, tmp_path, monkeypatch, error, status):
    """Gloo's threads abort an interpreter that ends before its group; without a group the call does nothing."""
    ended = []

    def fail(job):
        raise error("broken")

    monkeypatch.setattr(program_run, "run", fail)
    monkeypatch.setattr(collectives, "exit_without_peers", ended.append)
    assert program("test_preference").main([*preference, "--output_dir", str(tmp_path / "out")]) == status
    assert ended == [status]


def test_programs_refuse_wrong_input(preference, tmp_path, capsys):
    """An error is one line that names the flag, and the exit status is 2."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "odd" / "photo.png")
    (tmp_path / "network.pt").write_text("no weights")
    main = program("test_preference").main
    for change, flag in (
        (["--images", str(tmp_path / "empty")], "--images"),
        (["--images", str(tmp_path / "odd")], "--images"),
        (["--model", str(tmp_path / "empty")], "--model"),
        (["--model", str(tmp_path / "network.pt"), "--base_model", preference[1]], "network.pt"),
        (["--prompts_txt", ""], "--prompts_txt"),
        (["--clip_score_path", str(tmp_path / "empty")], "--clip_score_path"),
        (["--batch_size", "0"], "--batch_size"),
    ):
        assert main([*preference, "--output_dir", str(tmp_path / "out"), *change]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert flag in lines[-1] and lines[-1].startswith("test_preference.py: error: ")


def test_a_release_network_is_scored(preference, tiny_pipeline, tmp_path):
    """A bare .pt state dict samples as a 4-step student of its base model."""
    torch.save(load_file(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors"), tmp_path / "s.pt")
    given = [*preference[:4], *preference[6:]]  # without --steps
    given += ["--model", str(tmp_path / "s.pt"), "--base_model", str(tiny_pipeline)]
    assert program("test_preference").main([*given, "--output_dir", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "pictures" / "pictures.json").read_text())
    assert len(manifest["sigmas"]) == 5 and manifest["guidance_scale"] == 1.0
