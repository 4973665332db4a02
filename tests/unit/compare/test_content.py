"""What a sweep's stages read, and whether its content is the same."""

import shutil
from pathlib import Path

from dpdmd.compare.content import identify_inputs, measure_inputs, parsed_inputs, training_inputs

ROOT = Path(__file__).parents[3]


def test_a_measure_reads_the_paths_of_its_command(tmp_path):
    """Its program is known by its flags; {model} and {out} are no paths."""
    (tmp_path / "prompts.txt").write_text("a cross")
    (tmp_path / "test_diversity.py").write_text("")
    command = ["python", str(tmp_path / "test_diversity.py"), "--model", "{model}", "--prompts_txt"]
    inputs = measure_inputs([*command, str(tmp_path / "prompts.txt"), "--output_dir", "{out}"])
    assert inputs == measure_inputs([*command[:-1], f"--prompts_txt={tmp_path / 'prompts.txt'}"])
    assert inputs == {str(tmp_path / "prompts.txt"): tmp_path / "prompts.txt"}
    before = identify_inputs(inputs)
    (tmp_path / "prompts.txt").write_text("a red cross")
    assert before.keys() == inputs.keys() and identify_inputs(inputs) != before


def test_a_known_program_reads_its_defaults_too(monkeypatch):
    monkeypatch.chdir(ROOT)
    oracle = ["python", "-m", "dpdmd.shapes.measure", "--model", "x", "--out", "y"]
    assert parsed_inputs(oracle) == {"--prompt_txt": Path("data/shapes_eval.txt")}
    inputs = parsed_inputs(["python", "test_diversity.py", "--model", "x", "--output_dir", "y", "--clip_path", ""])
    assert inputs.keys() == {"--dino_path", "--prompts_txt"}
    assert inputs["--prompts_txt"] == Path("data/prompts_eval.txt")
    for unknown in (["python", "mine.py"], [*oracle, "--wrong"], oracle[:-2]):
        assert parsed_inputs(unknown) == {}


def test_a_scorer_and_a_pipeline_are_known_by_their_weights(tiny_pipeline, tiny_scorers, tmp_path):
    scorer = shutil.copytree(tiny_scorers["clip_path"], tmp_path / "clip")
    teacher = shutil.copytree(tiny_pipeline, tmp_path / "teacher")
    inputs = {"clip": scorer, **training_inputs({"teacher_id": str(teacher), "perceptual_path": None, "seed": 0})}
    before = identify_inputs(inputs)
    assert list(before) == ["clip", "teacher_id"]
    for file in (scorer / "model.safetensors", teacher / "vae" / "diffusion_pytorch_model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    after = identify_inputs(inputs)
    assert after["clip"] != before["clip"] and after["teacher_id"] != before["teacher_id"]


def test_what_is_gone_has_no_content(tmp_path):
    assert identify_inputs({"model": tmp_path / "gone"}) == {}
