"""The page: it contains what the run folders contain, and needs nothing else."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from made_up_runs import METRICS, PROMPTS, Page, make_run

from dpdmd.evaluation import seed_grids
from dpdmd.report import explanations, tables
from dpdmd.report.__main__ import main
from dpdmd.report.runs import RunEntry, read_runs
from dpdmd.utils.manifest import write_manifest

ROOT = Path(__file__).parents[3]


def page_of(*runs: Path, tmp_path: Path) -> Page:
    out = tmp_path / "out" / "page.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    source = out.read_text(encoding="utf-8")
    assert source.lstrip().startswith("<!DOCTYPE html>")
    return Page(source)


def test_the_page_is_well_formed_and_loads_nothing(tmp_path):
    """Elements close, ids are unique, no address leads outside, and every image and control has a name."""
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", shift=0.1, k_anchor=7)]
    page = page_of(*runs, tmp_path=tmp_path)
    ids = Counter(page.attributes("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
        for value in page.attributes(name):
            assert value.startswith(("#", "data:image/webp;base64,")), (name, value[:80])
            assert value[0] != "#" or value[1:] in ids, value
    source = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "@import" not in source and "url(" not in re.sub(r"url\(#[\w.-]+\)", "", source)
    assert [t for t, _ in page.tags if t in ("link", "iframe", "object", "embed", "base")] == []
    images = [values for tag, values in page.tags if tag == "img" and "src" in values]
    assert len(images) == seed_grids.PROMPTS * 3 and all(values["alt"] for values in images)
    named = {values["for"] for tag, values in page.tags if tag == "label"}
    controls = [values["id"] for tag, values in page.tags if tag in ("input", "select")]
    assert controls and set(controls) <= named
    drawings = [values for _, values in page.tags if values.get("class") == "drawing"]
    assert len(drawings) > 6 and all(values["role"] == "img" and values["aria-label"] for values in drawings)


def test_the_page_shows_what_the_files_contain(tmp_path):
    """Every score with its interval, the teacher's row, time, memory, versions, and different options."""
    run = make_run(tmp_path / "first", shift=0.2)
    other = make_run(tmp_path / "second", steps=6, k_anchor=7)
    text = page_of(run, other, tmp_path=tmp_path).text
    for root in (run, other):
        for record in map(json.loads, (root / "metrics.jsonl").read_text().splitlines()):
            for name in METRICS if record["turn"] == "eval" else ():
                mean, low, high = (tables.number(record[name + part]) for part in ("", "_low", "_high"))
                assert f"{mean} {low} – {high}" in text
                assert float(mean) == pytest.approx(record[name], rel=5e-4)
    assert "teacher – 0.5000 0.4000 – 0.6000 1.500 1.400 – 1.600 2.500 2.400 – 2.600" in text
    assert "10 fake, 2 student" in text and "5 fake, 1 student" in text
    assert "12 s" in text  # 12 updates of 0.5 s and 3 evaluations of 2 s
    assert "fake updates 5 s, 42%" in text and "evaluation 6 s, 50%" in text
    assert "1.120 GB" in text and "Abacus <1>" in text and "torch 2.99 2.99" in text
    runs = read_runs([RunEntry(run), RunEntry(other)])
    differing = [option.name for option in tables.options(runs) if option.differs]
    assert differing == ["k_anchor", "max_steps"]
    assert re.search(r"k_anchor teacher steps to the anchor, K; auto: [^;]+ 5 7 5", text)


def test_the_moving_average_is_shown_beside_its_run(tmp_path):
    """Its evaluations have their own keys, and give a row, a curve and a path."""
    run, other = make_run(tmp_path / "first", ema_decay=0.9), make_run(tmp_path / "second", shift=0.1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["turn"] == "eval":
            scores = {k: v for k, v in line.items() if k.startswith("eval/") and not k.endswith("_teacher")}
            line |= {k.replace("eval/", "eval_ema/"): v + 0.25 for k, v in scores.items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run, other, tmp_path=tmp_path)
    last = [line for line in lines if line["turn"] == "eval"][-1]
    shown = [tables.number(last[METRICS[0].replace("eval/", "eval_ema/") + part]) for part in ("", "_low", "_high")]
    assert "first, average 12 {} {} – {}".format(*shown) in page.text
    assert page.text.count("first, average") == 2  # in the overview, and in the tables of all evaluations
    assert {"score0-mean-run0", "score0-2.mean-run0", "plane0-2.path-run0"} <= set(page.attributes("id"))
    assert "score0-2.mean-run1" not in page.attributes("id")
    assert read_runs([RunEntry(other)])[0].of_average() is None


def test_metrics_of_the_oracle_are_a_table(tmp_path):
    """Of each run's model, and once of the teacher. A broken file is a warning."""
    interval = {"num_prompts": 3, "num_scored": 9, "num_missing": 0}

    def entry(steps: int, accuracy: float, spread: float | None = 0.7) -> dict:
        world = {"accuracy": accuracy, "unrecognised": 0.1, "entropy": 0.8125, "coverage": 0.9, "spread": spread}
        found = {"mean": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.02, **interval}
        categories = {"single_attribute": found, "colour_shape": {**found, "mean": accuracy + 0.01}}
        return {"steps": steps, "mean": world, "categories": categories}

    names = ("first", "second", "third")
    *runs, third = [make_run(tmp_path / name, every=0, images=False, teacher_id="the/teacher") for name in names]
    for index, run in enumerate(runs):
        student = entry(4, 0.5 + index / 10, None if index else 0.7)  # prompts of two objects have no spread
        metrics = {"the/teacher": entry(30, 0.95), str(run / "ckpts" / "latest"): student}
        (run / "figures.json").write_text(json.dumps(metrics))
    text = page_of(*runs, tmp_path=tmp_path).text
    assert "Model Sampling steps Single attribute Colour shape Overall Entropy Coverage Spread" in text
    assert "teacher 30 0.9500 0.8500 – 0.9700 0.9600 0.8500 – 0.9700 0.9550 0.8125 0.9000 0.7000" in text
    assert "first 4 0.5000 0.4000 – 0.5200" in text and "second 4 0.6000 0.5000 – 0.6200" in text
    assert "0.8125 0.9000 0.7000 first" in text and "0.8125 0.9000 – " in text
    assert text.count("teacher 30") == 1
    (runs[0] / "figures.json").write_text('{"x": 3}')
    assert "figures.json cannot be read" in page_of(runs[0], tmp_path=tmp_path).text
    assert "Prompt following" not in page_of(third, tmp_path=tmp_path).text


def test_an_unfinished_run_and_the_share_of_the_teachers_diversity(tmp_path):
    text = page_of(make_run(tmp_path / "run", images=False, max_steps=6000), tmp_path=tmp_path).text
    assert "12 of 6,000, not finished" in text
    assert "49% of the teacher’s" in text and text.count("% of the teacher’s") == 2  # .2435 of .5, and DINO's
    assert "not finished" not in page_of(make_run(tmp_path / "done", images=False), tmp_path=tmp_path).text


def test_a_value_that_is_not_a_number_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    text = (run / "metrics.jsonl").read_text().replace('"seconds": 0.5', '"seconds": NaN', 1)
    (run / "metrics.jsonl").write_text(text.replace('"memory_gb": 1.02', '"memory_gb": "much"'))
    assert "1.120 GB" in page_of(run, tmp_path=tmp_path).text


def test_names_may_break_after_each_word():
    assert tables.breakable("a_b/<c>.d") == "a_<wbr>b/&lt;c&gt;.<wbr>d"


def test_names_and_prompts_are_escaped(tmp_path):
    """HTML and quotes in a folder's name and in prompts are text, also in the data of the script."""
    run = make_run(tmp_path / "<b onclick='x'>\"&amp;")
    page = page_of(run, tmp_path=tmp_path)
    assert "<b onclick='x'>\"&amp;" in page.text and "onclick" not in {k for _, v in page.tags for k in v}
    for prompt in PROMPTS[:3]:
        assert f"“{prompt}”" in page.text and any(prompt in alt for alt in page.attributes("alt"))
    assert [tag for tag, _ in page.tags].count("script") == 2


def test_incomplete_runs_are_shown(tmp_path):
    """Runs without evaluations, images, updates or readable files, with a cut line, or with equal names."""
    cut = make_run(tmp_path / "one" / "run", every=0)
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "turn": "fa')
    bare = make_run(tmp_path / "two" / "run", images=False)
    started = tmp_path / "started"
    started.mkdir()
    (started / "config.yaml").write_text("method: {method: dmd, forgotten_option: 3}\n")
    broken = make_run(tmp_path / "broken", images=False)
    (broken / "config.yaml").write_text("a: [")
    (broken / "teacher_scores.json").write_text("{")
    (broken / "environment.json").unlink()
    checkpoint = broken / "ckpts" / "step_000006"
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, {"versions": {"torch": "1.2.3"}})
    whole = make_run(tmp_path / "whole", steps=18)
    (whole / "seed_grids" / "step_000006" / "grids.json").write_text("{}")

    runs = read_runs(list(map(RunEntry, [cut, bare, started, broken, whole, whole / ".." / "whole"])))
    assert [run.name for run in runs[:2]] == ["one/run", "two/run"] and len(runs) == 5
    assert runs[0].last_step == 12 and runs[0].evaluations == []
    assert list(runs[4].grids) == ["teacher", 0, 12, 18]
    text = page_of(cut, bare, started, broken, whole, tmp_path=tmp_path).text
    assert "forgotten_option" in text and "no such option" in text
    assert "broken: config.yaml: no YAML" in text and "the teacher has no intervals" in text and "1.2.3" in text
    alone = page_of(cut, tmp_path=tmp_path)
    assert "No run was evaluated" in alone.text and "slide" not in alone.attributes("class")
    assert "No update was recorded yet" in page_of(started, tmp_path=tmp_path).text
    assert "The teachers’ scores differ" not in text
    lines = (bare / "metrics.jsonl").read_text().replace('_teacher": 0.5', '_teacher": 0.7')
    (bare / "metrics.jsonl").write_text(lines)
    assert "The teachers’ scores differ" in page_of(bare, whole, tmp_path=tmp_path).text


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path, capsys):
    """One line, status 2, and nothing is written."""
    run = make_run(tmp_path / "run", every=0)
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([run, tmp_path / "empty"], f"{tmp_path / 'empty'}: is not a run folder"),
        ([tmp_path / "nowhere"], f"{tmp_path / 'nowhere'}: is not a run folder"),
        ([run, "--out", tmp_path / "empty"], f"--out {tmp_path / 'empty'}: cannot be written (Is a directory)"),
        ([run, "--out", run / "config.yaml" / "x.html"], "cannot be written"),
    ):
        assert main(list(map(str, arguments))) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("dpdmd.report: error: ") and says in line
    assert list((tmp_path / "empty").iterdir()) == [] and not (run / "report.html").exists()
    assert main([str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")


def test_a_run_without_evaluation_shows_its_last_update(tmp_path):
    """In place of the seed grids, which a run with evaluations shows. A damaged file is left out."""
    run = make_run(tmp_path / "run", every=0, process_image=True)
    scored = make_run(tmp_path / "scored", process_image=True)
    page = page_of(run, tmp_path=tmp_path)
    assert "Images during training" in page.text
    assert page.attributes("alt") == ["Images of the last shown update of run", ""]  # "" of the dialog
    both = page_of(run, scored, tmp_path=tmp_path)
    assert sum(alt.startswith("Images of the last") for alt in both.attributes("alt")) == 1
    assert "Images during training" not in page_of(scored, tmp_path=tmp_path).text
    (run / "process_vis" / "latest.png").write_bytes(b"no image")
    assert "Images during training" not in page_of(run, tmp_path=tmp_path).text


def test_a_sheet_that_is_gone_is_left_out(tmp_path, monkeypatch):
    """A run that goes on deletes sheets while the page is made; the page has the others."""
    run = make_run(tmp_path / "run")
    whole = page_of(run, tmp_path=tmp_path).attributes("src")
    (grids,) = [item.grids for item in read_runs([RunEntry(run)])]
    gone, read_bytes = grids[max(key for key in grids if key != seed_grids.TEACHER)][0].file, Path.read_bytes

    def read(path: Path) -> bytes:
        if path == gone:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert set(page_of(run, tmp_path=tmp_path).attributes("src")) != set(whole)


def test_steps_and_guidance_stand_at_the_top(tmp_path):
    """Once if all runs agree; else each group of runs has its line."""
    runs = [make_run(tmp_path / name, images=False, teacher_guidance_scale=g) for name, g in (("a", 3.5), ("b", 4.5))]
    text = page_of(*runs, tmp_path=tmp_path).text
    line = "Teacher: 30 sampling steps with guidance {}. Student: 4 sampling steps without guidance. A step of training"
    assert f"a: {line.format(3.5)}" in text and f"b: {line.format(4.5)}" in text
    one = page_of(runs[0], tmp_path=tmp_path).text
    assert one.index(line.format(3.5)) < one.index("Overview") and f"a: {line.format(3.5)}" not in one
    assert "one update of one network: 5 of the fake score, then 1 of the student." in one


def test_every_curve_of_a_method_has_a_line_on_it():
    """Every metric that a loss term or the trainer records is known to the page."""
    source = "".join(path.read_text() for path in (ROOT / "dpdmd" / "methods").glob("*.py"))
    recorded = set(re.findall(r'"((?:loss|logit|dmd_gradient|score_error)_\w+)":', source))
    recorded |= {"loss_student", "grad_norm", "grad_norm_discriminator", "lr"}
    assert {"loss_dmd", "loss_div", "loss_fake", "logit_real"} <= recorded
    assert [name for name in recorded if not explanations.curve("fake", name)[1]] == []
