"""A root program's command line: flags and checks, before anything loads."""

import runpy
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
