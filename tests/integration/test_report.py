"""The report: what it reads, what it shows, what it keeps of images, and that it never stops a training."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import METRICS, PROMPTS, make_run
from PIL import Image

from dpdmd import train
from dpdmd.evaluation import seed_grids
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.report import cli, figures, tables, writer
from dpdmd.report.runs import read_runs
from dpdmd.report.scores import Metric, Score
from dpdmd.report.style import style
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.image_folder import file_name
from dpdmd.utils.manifest import write_manifest

VOID = {"meta", "img", "input", "path", "use", "br", "link", "rect", "wbr"}


class Page(HTMLParser):
    """Parses strictly: every element closes in its order; keeps tags, ids and the text outside scripts and styles."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [values[name] or "" for _, values in self.tags if name in values]


def page_of(*runs: Path, tmp_path: Path) -> Page:
    out = tmp_path / "out" / "page.html"
    assert cli.main([*map(str, runs), "--out", str(out)]) == 0
    source = out.read_text(encoding="utf-8")
    assert source.lstrip().startswith("<!DOCTYPE html>")
    return Page(source)


def test_the_page_is_whole_and_asks_for_nothing(tmp_path):
    """Well-formed, each id once, no address of anything outside, every image and control with a name."""
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


def test_the_page_says_what_the_files_say(tmp_path):
    """Every score with its interval, the teacher's row, time, memory, versions, and what differs."""
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
    differing = [option.name for option in tables.options(read_runs([run, other])) if option.differs]
    assert differing == ["k_anchor", "max_steps"]
    assert re.search(r"k_anchor teacher steps to the anchor, K 5 7 5", text)


def test_the_moving_average_stands_beside_its_run(tmp_path):
    """Its evaluations are under names of their own: a row, a curve and a path, of the run's colour."""
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
    assert page.text.count("first, average") == 2  # at a glance, and in the table of every evaluation
    assert {"score0-mean-run0", "score0-2.mean-run0", "plane0-2.path-run0"} <= set(page.attributes("id"))
    assert "score0-2.mean-run1" not in page.attributes("id")
    assert read_runs([other])[0].of_average() is None


def test_prompt_following_is_a_table_where_it_was_measured(tmp_path):
    """Of the run's own model, and once of the teacher; a broken file is told."""
    interval = {"num_prompts": 3, "num_scored": 9, "num_missing": 0}

    def entry(steps: int, accuracy: float, spread: float | None = 0.7) -> dict:
        world = {"accuracy": accuracy, "unrecognised": 0.1, "entropy": 0.8125, "coverage": 0.9, "spread": spread}
        found = {"mean": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.02, **interval}
        kinds = {"single_attribute": found, "colour_shape": {**found, "mean": accuracy + 0.01}}
        return {"steps": steps, "mean": world, "categories": kinds}

    runs = [make_run(tmp_path / name, teacher_id="the/teacher") for name in ("first", "second")]
    for index, run in enumerate(runs):
        student = entry(4, 0.5 + index / 10, None if index else 0.7)  # prompts of two objects have no spread
        said = {"the/teacher": entry(30, 0.95), str(run / "ckpts" / "latest"): student}
        (run / "figures.json").write_text(json.dumps(said))
    text = page_of(*runs, tmp_path=tmp_path).text
    assert "Model Sampling steps Single attribute Colour shape Overall Entropy Coverage Spread" in text
    assert "teacher 30 0.9500 0.8500 – 0.9700 0.9600 0.8500 – 0.9700 0.9550 0.8125 0.9000 0.7000" in text
    assert "first 4 0.5000 0.4000 – 0.5200" in text and "second 4 0.6000 0.5000 – 0.6200" in text
    assert "0.8125 0.9000 0.7000 first" in text and "0.8125 0.9000 – " in text
    assert text.count("teacher 30") == 1
    (runs[0] / "figures.json").write_text('{"x": 3}')
    assert "figures.json cannot be read" in page_of(runs[0], tmp_path=tmp_path).text
    assert "Prompt following" not in page_of(make_run(tmp_path / "third"), tmp_path=tmp_path).text


def test_an_unfinished_run_and_the_share_of_the_teachers_diversity(tmp_path):
    text = page_of(make_run(tmp_path / "run", max_steps=6000), tmp_path=tmp_path).text
    assert "12 of 6,000, not finished" in text
    assert "49% of the teacher’s" in text and text.count("% of the teacher’s") == 2  # .2435 of .5, and DINO's
    assert "not finished" not in page_of(make_run(tmp_path / "done"), tmp_path=tmp_path).text


def test_what_is_no_number_in_a_record_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    text = (run / "metrics.jsonl").read_text().replace('"seconds": 0.5', '"seconds": NaN', 1)
    (run / "metrics.jsonl").write_text(text.replace('"memory_gb": 1.02', '"memory_gb": "much"'))
    assert "1.120 GB" in page_of(run, tmp_path=tmp_path).text


def test_names_break_where_their_words_end():
    assert tables.breakable("a_b/<c>.d") == "a_<wbr>b/&lt;c&gt;.<wbr>d"


def test_points_of_many_runs_stay_near_their_step():
    """Eight runs at one step lie within a fiftieth of the axis."""
    curves = [figures.Curve(f"run{n}", style(n), np.array([0.0, 100]), *[np.array([0.1, 0.2])] * 3) for n in range(8)]
    svg = figures.score_figure("s", curves, [])
    ends = [np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, f"s-mean-run{n}")), dtype=float)[:2] for n in range(8)]
    starts, width = [end[0, 0] for end in ends], ends[0][1, 0] - ends[0][0, 0]
    assert 0 < max(starts) - min(starts) <= 1.01 * figures.MAX_DODGE * width


def test_what_is_drawn_lies_where_the_values_are():
    """A figure's line is an affine image of the data, the same one for the intervals and the teacher."""
    steps, values = np.array([0.0, 6, 12, 30]), np.array([0.1, 0.7, 0.4, 0.9])
    curve = figures.Curve("run0", style(0), steps, values, values - 0.05, values + 0.1)
    svg = figures.score_figure("score0", [curve], [Score(0.3, 0.2, 0.5)])
    drawn = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-mean-run0")), dtype=float)[:4]
    across, down = np.polyfit(steps, drawn[:, 0], 1), np.polyfit(values, drawn[:, 1], 1)
    np.testing.assert_allclose(np.polyval(across, steps), drawn[:, 0], atol=1e-3)
    np.testing.assert_allclose(np.polyval(down, values), drawn[:, 1], atol=1e-3)
    assert across[0] > 0 > down[0]
    bars = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-bars-run0")), dtype=float)
    np.testing.assert_allclose(bars[:, 1].reshape(4, 2)[:, 0], np.polyval(down, values - 0.05), atol=1e-3)
    np.testing.assert_allclose(bars[:, 1].reshape(4, 2)[:, 1], np.polyval(down, values + 0.1), atol=1e-3)
    teacher = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-mean-teacher")), dtype=float)
    np.testing.assert_allclose(teacher[:, 1], np.polyval(down, 0.3), atol=1e-3)


def _group(svg: str, name: str) -> str:
    return svg.split(f'<g id="{name}">')[1].split("</g>")[0]


def test_smoothing_and_thinning_of_curves():
    """The running mean is the plain mean of neighbours, missing ones passed over; no extreme value is thinned away."""
    values = np.random.default_rng(0).normal(size=1001)
    values[[5, 400]] = np.nan
    mean = figures.running_mean(values, 7)
    for index in (0, 2, 5, 399, 1000):
        np.testing.assert_allclose(mean[index], np.nanmean(values[max(0, index - 3) : index + 4]))
    np.testing.assert_array_equal(figures.running_mean(values, 1), values)
    steps = np.arange(1001)
    places, kept = figures.envelope(steps, values)
    assert len(kept) <= figures.MAX_POINTS and np.nanmax(values) in kept and np.nanmin(values) in kept
    np.testing.assert_array_equal(values[places], kept)
    assert (
        figures.envelope(steps[:9], values[:9])[1] is not None and len(figures.envelope(steps[:9], values[:9])[1]) == 9
    )


def test_names_of_metrics():
    """The image set may hold what looks like a scorer; what stands beside a mean is none."""
    metric = Metric.of("eval/my_div_prompts_div_clip")
    assert (metric.image_set, metric.label, metric.diversity) == ("my_div_prompts", "CLIP diversity", True)
    metric = Metric.of("eval/coco_preference_pickscore_release")
    assert (metric.label, metric.diversity, metric.rescaled) == ("PickScore / 26", False, True)
    for name in ("eval/x_div_clip_low", "eval/x_div_clip_teacher", "eval/x_preference_a_missing", "seconds", "step"):
        assert Metric.of(name) is None


def test_names_and_prompts_are_escaped(tmp_path):
    """HTML and quotes in a folder's name and in prompts are text, also within the script's data."""
    run = make_run(tmp_path / "<b onclick='x'>\"&amp;")
    page = page_of(run, tmp_path=tmp_path)
    assert "<b onclick='x'>\"&amp;" in page.text and "onclick" not in {k for _, v in page.tags for k in v}
    for prompt in PROMPTS[:3]:
        assert f"“{prompt}”" in page.text and any(prompt in alt for alt in page.attributes("alt"))
    assert [tag for tag, _ in page.tags].count("script") == 2


def test_runs_of_every_state(tmp_path):
    """Without evaluation, images, updates or readable files; with a cut line; names that are the same."""
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

    runs = read_runs([cut, bare, started, broken, whole, whole / ".." / "whole"])
    assert [run.name for run in runs[:2]] == ["one/run", "two/run"] and len(runs) == 5
    assert runs[0].last_step == 12 and runs[0].evaluations == []
    assert list(runs[4].grids) == ["teacher", 0, 12, 18]
    text = page_of(cut, bare, started, broken, whole, tmp_path=tmp_path).text
    assert "forgotten_option" in text and "not an option then" in text
    assert "broken: config.yaml: no YAML" in text and "the teacher has no intervals" in text and "1.2.3" in text
    alone = page_of(cut, tmp_path=tmp_path)
    assert "No run was evaluated" in alone.text and "slide" not in alone.attributes("class")
    assert "No update was recorded yet" in page_of(started, tmp_path=tmp_path).text
    assert "The teachers differ" not in text
    lines = (bare / "metrics.jsonl").read_text().replace('_teacher": 0.5', '_teacher": 0.7')
    (bare / "metrics.jsonl").write_text(lines)
    assert "The teachers differ" in page_of(bare, whole, tmp_path=tmp_path).text


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ("run: {max_steps: 0b_}", "config.yaml: no YAML ('0b_' is no int"),
        ("run: {seed: 2026-13-45}", "is no timestamp"),
        ("- 1", "config.yaml: holds no groups of options"),
        ("run: 3", "config.yaml: holds no groups of options"),
        ("run: {max_steps: many}", "config.yaml: max_steps is no number: 'many'"),
    ],
)
def test_a_damaged_configuration_is_a_note_of_the_report(tmp_path, config, note):
    run = make_run(tmp_path / "run", images=False)
    (run / "config.yaml").write_text(config)
    assert note in page_of(run, tmp_path=tmp_path).text


def test_what_is_no_run_is_told(tmp_path, capsys):
    """One line, status 2, nothing written."""
    run = make_run(tmp_path / "run", every=0)
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([run, tmp_path / "empty"], f"{tmp_path / 'empty'}: is no run folder"),
        ([tmp_path / "nowhere"], f"{tmp_path / 'nowhere'}: is no run folder"),
        ([run, "--out", tmp_path / "empty"], f"--out {tmp_path / 'empty'}: cannot be written (Is a directory)"),
        ([run, "--out", run / "config.yaml" / "x.html"], "cannot be written"),
    ):
        assert cli.main(list(map(str, arguments))) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("dpdmd.report: error: ") and says in line
    assert list((tmp_path / "empty").iterdir()) == [] and not (run / "report.html").exists()
    assert cli.main([str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")


def test_no_model_library_is_imported(tmp_path):
    """Importing the program takes no plotting library, and writing a report no torch."""
    run = make_run(tmp_path / "run")
    code = (
        "import sys, dpdmd.report.cli; assert 'matplotlib' not in sys.modules; "
        f"assert dpdmd.report.cli.main([{str(run)!r}]) == 0; "
        "assert not {'torch', 'diffusers', 'transformers', 'accelerate', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_kept_of_images_is_bounded(tmp_path, monkeypatch):
    """So many prompts, seeds, pixels and evaluations; the first and the last stay, the rest spread evenly."""
    monkeypatch.setattr(seed_grids, "EVALUATIONS", 6)
    folder = RunFolder.of(tmp_path / "run")
    for number in range(5):
        for n in range(10):
            for place in (folder.eval_images, folder.eval_images / "teacher"):
                path = place / "set" / file_name((number, n))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (400, 200), (n * 20, number * 40, 90)).save(path)
    sets = [ImageSet("set", [f"prompt {n}" for n in range(5)], 10, ())]
    for step in range(0, 60 * 9, 60):
        seed_grids.save(folder, step, sets)
    found = seed_grids.read(folder.seed_grids)
    steps = [step for step in found if step != seed_grids.TEACHER]
    assert len(steps) == seed_grids.EVALUATIONS and steps[0] == 0 and steps[-1] == 480
    assert set(np.diff(steps)) <= {60, 120}
    for grids in found.values():
        assert [grid.prompt for grid in grids] == [f"prompt {n}" for n in range(seed_grids.PROMPTS)]
        for grid in grids:
            assert grid.num_seeds == seed_grids.SEEDS
            with Image.open(grid.file) as image:
                assert image.size == grid.size == (3 * 192 + 2 * seed_grids.GAP, 3 * 96 + 2 * seed_grids.GAP)
    with Image.open(found[0][1].file) as image:  # seed 4 of prompt 1 is in the middle
        np.testing.assert_allclose(image.convert("RGB").getpixel((290, 146)), (80, 40, 90), atol=6)
    seed_grids.drop_later(folder.seed_grids, 200)
    assert [s for s in seed_grids.read(folder.seed_grids) if s != "teacher"] == [s for s in steps if s <= 200]


@pytest.fixture
def flags(short_run: list[str], tiny_scorers: dict[str, str], tmp_path: Path) -> list[str]:
    """A run that is evaluated every six steps, by CLIP for diversity and for alignment."""
    prompts = tmp_path / "eval.txt"
    prompts.write_text("a red circle\na <shape>")
    scorers = [part for flag in ("clip_path", "clip_score_path") for part in (f"--{flag}", tiny_scorers[flag])]
    evaluated = ["--div_prompts", str(prompts), "--pref_prompts", str(prompts), "--num_div_seeds", "3"]
    return [*short_run, *scorers, *evaluated, "--ckpt_every", "6", "--run_dir", str(tmp_path / "run")]


def test_a_run_keeps_its_report_and_a_resumed_one_its_past(flags, tmp_path, monkeypatch):
    """Refreshed at each evaluation and written at the end; what lies beyond the checkpoint is dropped."""
    written, write = [], writer.write

    def counted(folders, out):
        write(folders, out)
        records = (out.parent / "metrics.jsonl").read_text().splitlines()
        written.append((json.loads(records[-1])["step"], Page(out.read_text(encoding="utf-8")).text))

    monkeypatch.setattr(writer, "write", counted)
    run = tmp_path / "run"
    assert train.main([*flags, "--max_steps", "12"]) == 0
    assert [step for step, _ in written] == [0, 6, 12]
    assert "run: 12 of 12 steps" in written[-1][1] and "“a <shape>”" in written[-1][1]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] in written[-1][1] and environment["processes"] == 1
    assert {path.name for path in (run / "seed_grids").iterdir()} == {
        *("teacher", "step_000000", "step_000006", "step_000012")
    }
    resumed = ["--resume_from_checkpoint", str(run / "ckpts" / "step_000006"), "--max_steps", "8"]
    assert train.main([*flags, *resumed]) == 0
    assert [s for s in seed_grids.read(run / "seed_grids") if s != "teacher"] == [0, 6, 8]
    assert "run: 8 of 8 steps" in written[-1][1]


def test_a_report_that_fails_stops_no_training(flags, tmp_path, monkeypatch):
    """Nor do images that cannot be kept: a warning each, and the run ends as it would have."""

    def fail(*_):
        raise RuntimeError("no ink")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write", fail)
    monkeypatch.setattr(seed_grids, "save", full)
    assert train.main([*flags, "--max_steps", "6"]) == 0
    log = (tmp_path / "run" / "log" / "log.txt").read_text()
    assert log.count("no report was written: RuntimeError: no ink") == 2
    assert "the report will lack the images of step 6: [Errno 28]" in log
    assert (tmp_path / "run" / "ckpts" / "step_000006").is_dir() and not (tmp_path / "run" / "report.html").exists()
