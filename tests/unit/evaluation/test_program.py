"""A root program's command line: flags and checks, before anything loads."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]


def program(name: str):
    """Import a root program."""
    return runpy.run_path(str(ROOT / f"{name}.py"))["PROGRAM"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("test_quality", ["cat.png", "dog (2).jpg"]),
        ("test_diversity", ["05000_000.png", "05000_001.png"]),
    ],
)
def test_images_need_no_prompts_where_no_scorer_reads_them(tiny_scorers, tmp_path, monkeypatch, name, files):
    """The default --prompts_txt is of a model's images; one that is given must be of the given images."""
    monkeypatch.chdir(ROOT)
    for file in files:
        Image.new("RGB", (64, 64)).save(tmp_path / file)
    (tmp_path / "maniqa.pth").write_bytes(b"PK\x03\x04")
    scorers = {
        "test_quality": ["--vq_path", "", "--maniqa_path", str(tmp_path / "maniqa.pth")],
        "test_diversity": ["--dino_path", tiny_scorers["dino_path"], "--clip_path", ""],
    }
    root = program(name)
    given = ["--images", str(tmp_path), "--output_dir", str(tmp_path / "out"), *scorers[name]]
    job = root.check(root.parser().parse_args(given))
    assert [image.path.name for image in job.images] == files and job.prompts == []
    with pytest.raises(ValueError, match=r"--prompts_txt nowhere\.txt"):
        root.check(root.parser().parse_args([*given, "--prompts_txt", "nowhere.txt"]))
    with pytest.raises(ValueError, match="--images"):
        root.check(root.parser().parse_args([*given, "--prompts_txt", "data/shapes_eval.txt"]))


@pytest.mark.parametrize("default", ["./data/shapes_eval.txt", Path("data/shapes_eval.txt"), "~/prompts.txt", "", None])
def test_a_variable_is_not_a_given_flag_however_it_is_written(tiny_scorers, tmp_path, monkeypatch, default):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"05000_{number:03d}.png")
    (tmp_path / "images.csv").write_text("file,prompt\n05000_000.png,a cat\n05000_001.png,a cat\n")
    root = program("test_diversity")
    root = replace(root, defaults={**root.defaults, "prompts_txt": default})
    given = ["--output_dir", str(tmp_path / "out"), "--dino_path", tiny_scorers["dino_path"], "--clip_path", ""]
    for images in (tmp_path, tmp_path / "images.csv"):
        args = root.parser().parse_args(["--images", str(images), *given])
        assert len(root.check(args).images) == 2 and list(root.inputs(args)) == ["--dino_path"]


def test_wrong_images_are_reported_before_anything_is_fetched(tmp_path, monkeypatch):
    """A scorer that is left out is not fetched."""
    monkeypatch.chdir(ROOT)
    root, asked = program("test_preference"), []
    monkeypatch.setattr("dpdmd.evaluation.program.locate_all", lambda sources, hub: asked.append(sources) or 1 / 0)
    given = ["--download", "--clip_score_path", "", "--ir_model_path", "", "--output_dir", str(tmp_path / "out")]
    given += ["--pick_model_path", "org/pick", "--pick_processor_path", "org/pick", "--images"]
    with pytest.raises(ValueError, match=r"--images .*nowhere: no such folder"):
        root.check(root.parser().parse_args([*given, str(tmp_path / "nowhere")]))
    Image.new("RGB", (64, 64)).save(tmp_path / "00000_000.png")
    with pytest.raises(ZeroDivisionError):
        root.check(root.parser().parse_args([*given, str(tmp_path)]))
    (sources,) = asked
    assert [source.flag for source in sources] == ["--pick_processor_path", "--pick_model_path"]


@pytest.mark.parametrize(
    ("name", "flag", "value", "says"),
    [
        ("test_preference", "model", ["a", "b"], "MODEL in this program's file: must be one path in quotes, or None"),
        ("test_preference", "prompts_txt", ["a red circle"], "or None, not ['a red circle']"),
        ("test_preference", "output_dir", 7, "OUTPUT_DIR in this program's file: must be one path in quotes, or None"),
        ("test_preference", "images", False, "IMAGES in this program's file: must be one path in quotes, or None"),
        ("test_diversity", "dino_path", b"x", "DINO_PATH in this program's file: must be one path in quotes, or None"),
        (
            "test_diversity",
            "num_samples",
            "9",
            '"num_samples" in this program\'s file: must be a whole number,',
        ),
        ("test_diversity", "num_samples", None, "must be a whole number, not None"),
        ("test_diversity", "num_samples", 2.5, "must be a whole number, not 2.5"),
        ("test_diversity", "num_samples", True, "must be a whole number, not True"),
        ("test_quality", "num_crops", 10.5, '"num_crops" in this program\'s file: must be a whole number, not 10.5'),
        ("test_quality", "maniqa_scale", "0.8", "\"maniqa_scale\" in this program's file: must be a number, not '0.8'"),
        ("test_quality", "vq_sample", "yes", "\"vq_sample\" in this program's file: must be True or False, not 'yes'"),
    ],
)
def test_a_variable_of_a_wrong_type_gets_one_line(capsys, name, flag, value, says):
    root = program(name)
    edited = replace(root, defaults={**root.defaults, flag: value})
    assert edited.main(["--model", "no/such"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: error: ") and says in line


def test_a_variable_may_be_a_path_and_a_number_may_be_a_whole_one():
    root = program("test_quality")
    edited = replace(root, defaults={**root.defaults, "vq_path": Path("a") / "b", "maniqa_scale": 1})
    args = edited.parser().parse_args(["--maniqa_scale", "0.5"])
    assert (args.vq_path, args.maniqa_scale) == ("a/b", 0.5)
