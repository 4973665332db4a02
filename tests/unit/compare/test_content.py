"""What a sweep's stages read, and whether its content is the same."""

import shutil

from dpdmd.compare.content import identify_inputs, measure_inputs, training_inputs


def test_a_measure_reads_the_paths_of_its_command(tmp_path):
    """Its program is known by its flags; {model} and {out} are no paths."""
    (tmp_path / "prompts.txt").write_text("a cross")
    (tmp_path / "test_diversity.py").write_text("")
    command = ["python", str(tmp_path / "test_diversity.py"), "--model", "{model}", "--prompts_txt"]
    inputs = measure_inputs([*command, str(tmp_path / "prompts.txt"), "--output_dir", "{out}"])
    assert inputs == {str(tmp_path / "prompts.txt"): tmp_path / "prompts.txt"}
    before = identify_inputs(inputs)
    (tmp_path / "prompts.txt").write_text("a red cross")
    assert before.keys() == inputs.keys() and identify_inputs(inputs) != before


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
