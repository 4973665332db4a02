"""Wrong paths and files with wrong contents get a one-line error before any model loads."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from bad_input import LONG, ROOT, program
from made_up_runs import make_run

from dpdmd import config, doctor, export, generate
from dpdmd.data.prompt_files import read_prompts
from dpdmd.report.__main__ import main as write_report
from dpdmd.run_folder import RunFolder
from dpdmd.shapes import build, measure_scorers
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.paths import check_writable

pytestmark = pytest.mark.usefixtures("no_model_loads")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--run_dir", " ", "--run_dir ' ': is empty; give a value, or leave it out"),
        (
            "--run_dir",
            "~nobody_at_all/run",
            "~nobody_at_all is not the home of a known user; write ./~ for a folder of that name",
        ),
        (
            "--config",
            "~nobody_at_all/a.yaml",
            "--config ~nobody_at_all/a.yaml: ~nobody_at_all is not the home of a known user",
        ),
        (
            "--teacher_id",
            "hf://a/b",
            "--teacher_id hf://a/b: is an address; give a local path, or for a model org/name",
        ),
        ("--run_dir", "s3://bucket/run", "--run_dir s3://bucket/run: is an address; give a local path"),
        ("--run_dir", "weights/tiny/sd35/run", "lies in a model's folder, "),
        ("--cache_text_embeddings", "weights/tiny/sd35", "lies in a model's folder, "),
        ("--cache_text_embeddings", "weights/tiny/clip", "lies in a model's folder, "),
        ("--prompt_txt", "/dev/zero", "cannot be read (No regular file but a pipe or a device)"),
        ("--teacher_id", "README.md", "--teacher_id README.md: is a file; give the folder of a model"),
        (
            "--teacher_id",
            "weights/tiny/clip",
            "model_index.json is missing; give another path, or get it as it came with",
        ),
        ("--teacher_id", "weights/tiny/sd36", "no such folder; give another path, or get it as it came with this code"),
        ("--clip_path", "README.md", "--clip_path README.md: is a file; give the folder of a model"),
        (
            "--teacher_id",
            "stabilityai/stable-diffusion-3.5-medium",
            "no such folder; get it from https://huggingface.co",
        ),
    ],
)
def test_a_wrong_path_gets_one_line(refused, monkeypatch, flag, value, says):
    monkeypatch.chdir(ROOT)
    assert says in refused({flag: value})


def test_a_cache_that_is_a_file(refused, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = refused({"--teacher_id": "a/b", "--cache_dir": "README.md"})
    assert line == f"--cache_dir {ROOT / 'README.md'}: is a file; give a folder"


def test_a_path_of_the_checkout_elsewhere(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = refused({"--teacher_id": "weights/tiny/sd35"})
    assert line.endswith("no such folder; it comes with this code; start in the checkout, where these paths lead")


@pytest.mark.parametrize("flag", ["--run_dir", "--cache_text_embeddings"])
def test_a_folder_that_only_seems_writable(refused, tmp_path, monkeypatch, flag):
    """For root, `os.access` says that every folder is writable, so a file is written to find out."""

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("dpdmd.utils.paths.tempfile.TemporaryFile", refuse)
    line = refused({flag: str(tmp_path / "new")})
    assert f"{tmp_path} cannot be written to (Read-only file system)" in line
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"--out /proc/new: /proc (cannot be written to|is not writable)"):
        check_writable("--out", Path("/proc/new"))


@pytest.mark.parametrize(
    "flag", ["--run_dir", "--ckpt_dir", "--teacher_id", "--student_id", "--prompt_txt", "--config"]
)
def test_an_empty_path_is_not_the_current_folder(flags, refused, flag):
    """If RUN is not set, `--run_dir "$RUN"` would train into the default folder."""
    flags[f"{flag}="] = ""
    assert f"{flag} '': is empty" in refused({})


def test_an_empty_path_of_a_scorer_leaves_the_scorer_out():
    given = config.parse(["--clip_path", "", "--ir_med_config", ""])
    assert (given.eval.clip_path, given.eval.ir_med_config) == ("", "")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """The shell does not replace it after `--run_dir=`, and no shell reads a configuration file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags.yaml").write_text("data: {prompt_txt: ~/prompts.txt}\nrun_dir: ~/run\n")
    given = config.parse(["--config=~/flags.yaml", "--teacher_id=~/sd35", "--clip_path=~"])
    assert given.data.prompt_txt == str(tmp_path / "prompts.txt") and given.eval.clip_path == str(tmp_path)
    assert RunFolder.from_config(given.run).root == tmp_path / "run"
    assert given.model.student_id == given.model.teacher_id == str(tmp_path / "sd35")
    parsed = generate.build_parser().parse_args(["--model=~/m", "--out=~", "--prompt", "~"])
    assert (parsed.model, parsed.out, parsed.prompt) == (tmp_path / "m", tmp_path, ["~"])


@pytest.mark.parametrize(
    ("value", "says"), [("~nobody_at_all/x", "argument --out: ~nobody_at_all/x: "), ("", "argument --out: '' is empty")]
)
def test_generate_checks_paths(refused_by, tiny_pipeline, value, says):
    given = ["--model", str(tiny_pipeline), "--prompt", "a", f"--out={value}"]
    assert says in refused_by("dpdmd.generate", generate.main, given)


@pytest.mark.parametrize("inside", ["", "new", "transformer/new"])
def test_a_models_folder_is_not_written_into(refused_by, broken, inside):
    """An export into its own model would copy itself without end, and the next copy would contain the images."""
    out = broken / inside
    given = ["--model", str(broken), "--out", str(out), "--prompt", "a"]

    assert "lies in a model's folder" in refused_by("dpdmd.generate", generate.main, given)
    if inside:
        assert "lies in a model's folder" in refused_by("dpdmd.export", export.main, given[:4])
    assert inside == "" or not out.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('["a cat", "a dog"]\n', "is JSON; give a text file"),
        ('{"prompts": [\n"a cat"]}\n', "is JSON; give a text file"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "is JSON; give a text file"),
        ("\u200b\n\ufeff\n\x07\n", "no prompt in it"),
        ("a cat\n\0\0\n", "holds zero bytes"),
        ("a cat\n\n" + "x" * 5_600_000 + "\n", "prompts.txt: line 3 has 5,600,000 letters, and a prompt has at most"),
    ],
    ids=["JSON list", "JSON object", "JSON lines", "invisible characters", "zero bytes after the prompts", "one line"],
)
def test_a_file_that_holds_no_prompts_gets_one_line(refused, tmp_path, content, says):
    (tmp_path / "prompts.txt").write_text(content)
    assert says in refused({"--prompt_txt": str(tmp_path / "prompts.txt")})


def test_a_prompt_file_with_columns_gets_one_line(flags, refused, refused_by, tiny_scorers, tmp_path):
    """Also the evaluation's files, which share --prompt_column with the training's."""
    table = tmp_path / "prompts.csv"
    table.write_text("id,prompt,text\n1,a,b\n")
    several = f"{table}: several columns may be the prompts; give --prompt_column, one of prompt, text"
    clip = {"--clip_path": tiny_scorers["clip_path"]}
    assert refused({"--prompt_txt": str(table)}) == f"--prompt_txt {several}"
    assert refused({"--div_prompts": str(table), **clip}) == f"--div_prompts {several}"
    absent = f"{table}: has no column 'x' (--prompt_column); its columns are 'id', 'prompt', 'text'"
    assert refused({"--div_prompts": str(table), "--prompt_column": "x", **clip}) == f"--div_prompts {absent}"
    model = ["--model", flags["--teacher_id"], "--prompt_txt", str(table), "--out", str(tmp_path / "out")]
    assert refused_by("dpdmd.generate", generate.main, model) == f"--prompt_txt {several}"
    args = generate.build_parser().parse_args([*model, "--prompt_column", "text"])
    assert generate.check(args) == ["b"]


def test_prompts_that_only_look_like_json_are_prompts(tmp_path):
    lines = ["[a cat] on a mat", "{a} dog", '"quoted"', "[1, 2", "5", "a\tb\u2028c", "naïve café ²", "a" * 100_000]
    (tmp_path / "prompts.txt").write_text("\ufeff" + "\r\n".join(lines))
    assert read_prompts(tmp_path / "prompts.txt") == lines


@pytest.mark.parametrize("flag", ["--prompt_txt", "--config", "--div_prompts"])
def test_a_pipe_does_not_keep_a_run_waiting(refused, tiny_scorers, tmp_path, flag):
    """No process writes into the pipe, so opening it would wait without end."""
    os.mkfifo(tmp_path / "pipe")
    clip = {"--clip_path": tiny_scorers["clip_path"]}
    line = refused({flag: str(tmp_path / "pipe"), **clip})
    assert "cannot be read (No regular file but a pipe or a device)" in line


def test_pipes_in_a_models_folder_do_not_keep_a_run_waiting(refused, broken):
    for name in ("model_index.json", "transformer/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        file, kept = broken / name, broken.parent / "kept"
        file.rename(kept)
        os.mkfifo(file)
        assert "No regular file" in refused({"--teacher_id": str(broken)})
        file.unlink()
        kept.rename(file)


def test_a_message_is_one_line(refused):
    """A path may contain a line break or a character that moves the terminal's cursor."""
    assert one_line("a\nb\x1b[2J ü ²\u2028") == "a\\nb\\x1b[2J ü ²\\u2028"
    assert "--teacher_id no\\nwhere: no such folder" in refused({"--teacher_id": "no\nwhere"})


@pytest.mark.parametrize("text", ['run_dir: "a\\0b"', 'teacher_id: "\\ud800"'])
def test_a_text_that_no_path_can_be(refused, tmp_path, flags, text):
    (tmp_path / "wrong.yaml").write_text(text)
    del flags["--run_dir"], flags["--teacher_id"]
    assert "is no text that a path or a name can be" in refused({"--config": str(tmp_path / "wrong.yaml")})


def test_report_rejects_a_folder_that_is_no_run(capsys, tmp_path):
    assert write_report([str(tmp_path / "nowhere")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_gets_one_line(refused_by, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert f"{loop}: is not a run folder" in refused_by("dpdmd.report", write_report, [str(loop)])


def test_a_run_that_cannot_be_read_is_not_called_a_wrong_out(refused_by, monkeypatch, tmp_path):
    long, out = str(tmp_path / LONG), str(tmp_path / "x.html")
    assert (
        refused_by("dpdmd.report", write_report, [long, "--out", out])
        == f"{long}/runs: cannot be read (File name too long)"
    )
    (tmp_path / "run").mkdir()
    closed = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "run"))
    monkeypatch.setattr("dpdmd.report.sweeps.is_run", Mock(side_effect=closed))
    (tmp_path / "run" / "runs").mkdir()
    line = refused_by("dpdmd.report", write_report, [str(tmp_path / "run"), "--out", out])
    assert line == f"{tmp_path / 'run'}: cannot be read (Permission denied)"


def test_a_report_replaces_only_a_page(refused_by, tmp_path):
    run = make_run(tmp_path / "run", images=False)
    records = (run / "metrics.jsonl").read_text()
    for out, says in (
        (run / "metrics.jsonl", "exists and is no HTML page; give another file"),
        (run / LONG, "cannot be written (File name too long)"),
    ):
        assert says in refused_by("dpdmd.report", write_report, [str(run), "--out", str(out)])
    assert (run / "metrics.jsonl").read_text() == records
    (run / "report.html").touch()
    assert [write_report([str(run)]) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("name", ["grids/00042.png", "per_image.csv", "table.txt"])
def test_a_root_program_replaces_only_its_own_results(refused_by, diversity, tmp_path, name):
    """A summary.json, which is written first, says that they are its own."""
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    line = refused_by("test_diversity.py", program("test_diversity.py"), diversity)
    assert line.startswith(f"--output_dir {tmp_path / 'out'}: {path} would be replaced, and nothing shows that ")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "file", "says"),
    [
        ("summary.json", None, "summary.json is a folder, but a file is written there; move it away"),
        ("per_image.csv", None, "per_image.csv is a folder, but"),
        ("table.txt", "summary.json", "table.txt is a folder, but"),
        ("grids/00000.png", "summary.json", "grids/00000.png is a folder, but"),
        (None, "grids", "grids is a file; give a folder"),
        (None, "pictures", "pictures is a file; give a folder"),
    ],
)
def test_a_folder_in_the_place_of_a_result_is_named_before_any_scoring(
    refused_by, diversity, tmp_path, folder, file, says
):
    out = tmp_path / "out"
    (out / (folder or "")).mkdir(parents=True)
    if file:
        (out / file).write_text("{}")
    line = refused_by("test_diversity.py", program("test_diversity.py"), diversity)
    assert line.startswith(f"--output_dir {out}") and says in line


def test_the_doctor_reports_a_full_disk_in_one_line(capsys, monkeypatch, tmp_path):
    def full(out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))

    monkeypatch.setattr("dpdmd.doctor.scratch_folder", full)
    assert doctor.main(["--out", str(tmp_path / "doctor")]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("dpdmd.doctor: stopped: ") and "No space left" in line and "\n" not in line


@pytest.mark.parametrize(
    ("module", "flags", "says"),
    [
        (build, ["--seed", "-1"], "--seed -1: must be 0 to"),
        (build, ["--vae", "{tmp}/none"], "--vae {tmp}/none: no such folder"),
        (build, ["--pairs", "--start", "{tmp}/none"], "--start {tmp}/none/vae: no such folder"),
        (build, [], "--out weights/tiny/sd35: is there already; give another --out"),
        (build, ["--out", "{tmp}/file/sd35"], "--out {tmp}/file: {tmp}/file is a file; give a folder"),
        (measure_scorers, ["--out", "{tmp}"], "--out {tmp}: is a folder; give a file"),
        (measure_scorers, ["--out", "{tmp}/file/x.json"], "--out {tmp}/file: {tmp}/file is a file; give a folder"),
        (measure_scorers, ["--root", "{tmp}"], "--clip_path {tmp}/clip: no such folder"),
    ],
)
def test_the_small_worlds_programs_check_their_flags_first(refused_by, monkeypatch, tmp_path, module, flags, says):
    (tmp_path / "file").touch()
    for work in ("train_autoencoder", "build_scorers", "pair_accuracy"):
        monkeypatch.setattr(module, work, Mock(side_effect=AssertionError("it began")), raising=False)
    words = [flag.format(tmp=tmp_path) for flag in flags]
    assert refused_by(module.__name__, module.main, words).startswith(says.format(tmp=tmp_path))
