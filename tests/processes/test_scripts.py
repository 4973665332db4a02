"""The scripts print their help and report wrong settings on a machine without weights and packages."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("check.sh", "Checks before a commit"),
        ("download_prompts.sh", "Download the paper's prompt sets"),
        ("download_weights.sh", "usage: bash scripts/download_weights.sh [NAME ...]"),
        ("run_tests.sh", "Run the tests"),
        ("run_train.sh", "Distils the model of a family on 8 GPUs"),
        ("run_train_sd35.sh", "Distils SD3.5-Medium with the paper's settings"),
        ("run_train_tiny.sh", "Distils the small world's 30-step teacher"),
        ("run_train_sdxl.sh", "Distils SDXL (base 1.0) with the paper's settings"),
        ("slurm_train_sd35.sh", "SD3.5-Medium on two SLURM nodes of 8 GPUs"),
    ],
)
def test_help_needs_nothing(tmp_path, script, says, flag):
    for package in ("pyarrow", "huggingface_hub"):  # as if they were not installed
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package}', name='{package}')\n")
    environment = {"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), flag],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and says in done.stdout
    assert "SBATCH" not in done.stdout and "set -" not in done.stdout


def test_a_missing_package_is_named_when_it_is_needed(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('no pyarrow', name='pyarrow')\n")
    environment = {"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = ["bash", str(ROOT / "scripts" / "download_prompts.sh"), "--out", str(tmp_path), "coco"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("download_prompts: no pyarrow; ")
    wrong = subprocess.run(
        [*command, "cocoa"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 2 and "unknown set 'cocoa': choose of" in wrong.stderr
    command[3] = str(tmp_path / "pyarrow.py")
    file = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert file.returncode == 1 and len(file.stderr.splitlines()) == 1
    assert file.stderr.startswith(f"download_prompts: --out {tmp_path / 'pyarrow.py'}: cannot be written to (")


def test_every_default_weight_can_be_fetched_and_is_listed():
    """download_weights.sh and the documents have all weights that a root program reads by default."""
    fetched = (ROOT / "scripts" / "download_weights.sh").read_text()
    listed = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for program in sorted(ROOT.glob("test_*.py")):
        for value in runpy.run_path(str(program))["PROGRAM"].defaults.values():
            if isinstance(value, str) and value.startswith("weights/"):
                name = (
                    value.split("/")[1] if value.startswith("weights/ImageReward/") else value.removeprefix("weights/")
                )
                assert name in fetched and f"`weights/{name}`" in listed


HF = """#!/usr/bin/env python3
import json, os, sys, pathlib
pathlib.Path(os.environ["WORDS"]).write_text(json.dumps(sys.argv[1:]))
folder = pathlib.Path(sys.argv[sys.argv.index("--local-dir") + 1])
folder.mkdir(parents=True)
if os.environ["WHOLE"]:
    (folder / "model_index.json").write_text("{}")
"""


@pytest.mark.parametrize("whole", ["", "yes"])
def test_the_folders_of_a_pipeline_are_asked_for_by_patterns(tmp_path, whole):
    """hf takes one pattern for each flag; words without one are names of files, and then it ignores all patterns."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "download_weights.sh", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hf").write_text(HF)
    (tmp_path / "bin" / "hf").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "WORDS": str(tmp_path / "words"),
        "WHOLE": whole,
    }
    command = ["bash", str(tmp_path / "scripts" / "download_weights.sh"), "lumina2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    words = json.loads((tmp_path / "words").read_text())
    assert words[:4] == [
        "download",
        "Alpha-VLLM/Lumina-Image-2.0",
        "--local-dir",
        "weights/Alpha-VLLM/Lumina-Image-2.0",
    ]
    flags, patterns = words[4::2], words[5::2]
    assert set(flags) == {"--include", "--exclude"} and {"model_index.json", "*/*.safetensors"} <= set(patterns)
    assert (done.returncode == 0) == bool(whole) and ("holds no model_index.json" in done.stderr) == (not whole)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MEASURED_PROMPTS", "no/such.txt", "MEASURED_PROMPTS no/such.txt: cannot be read (No such file or directory)"),
        ("MEASURED_PROMPTS", "data/prompts_eval.txt", "is not a caption of the small world"),
        ("NUM_SEEDS", "abc", "argument NUM_SEEDS: invalid int value: 'abc'"),
        ("GRID_PROMPT", " ", "GRID_PROMPT: is empty"),
    ],
)
def test_the_small_worlds_run_checks_its_measurement_before_it_trains(tmp_path, variable, value, says):
    line = refused({variable: value}, "--run_dir", str(tmp_path / "run"))
    assert line.startswith("run_train_tiny.sh: ") and says in line and not (tmp_path / "run").exists()


def test_the_small_worlds_run_has_images_that_its_oracle_reads(tmp_path):
    line = refused({}, "--height", "128", "--output_dir", str(tmp_path / "run"))  # one folder: no other is given
    assert line == (
        "run_train_tiny.sh: --height 128 --width 64: the oracle of the small world reads 64 x 64 pixels; leave them out"
    )


@pytest.mark.parametrize("given", [[], ["--config", "mine.yaml"], ["--output_dir", "elsewhere"]])
def test_the_small_worlds_run_goes_where_flags_and_files_say(tmp_path, given):
    """An interpreter stands in for the trainer: it prints its words, and everything else is real."""
    (tmp_path / "mine.yaml").write_text(f"run: {{run_dir: {tmp_path / 'in_file'}}}\n")
    python = tmp_path / "python"
    own = f'[[ $2 == *setup.py ]] && echo "$0" && exit\n[[ $1 == - ]] && exec {sys.executable} "$@"'
    python.write_text(f'#!/bin/bash\n{own}\necho "$*"\nexit 3\n')
    python.chmod(0o755)
    words = [str(tmp_path / word) if word == "mine.yaml" else word for word in given]
    command = ["bash", "scripts/run_train_tiny.sh", *words]
    environment = os.environ | {"PYTHON": str(python), "CDPATH": f".:{ROOT}"}  # with which `cd` prints
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert ("--run_dir=outputs/tiny/dpdmd" in done.stdout) == (not given)


def test_the_small_worlds_run_names_a_wrong_flag():
    assert refused({}, "--max_stps", "3").startswith("dpdmd.train: error: unrecognized arguments: --max_stps 3 (did")


def refused(variables: dict[str, str], *flags: str) -> str:
    """Return the one line with which run_train_tiny.sh refuses its input."""
    command = ["bash", str(ROOT / "scripts" / "run_train_tiny.sh"), *flags]
    environment = os.environ | {"PYTHON": sys.executable, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_a_wrong_interpreter_is_named(tmp_path):
    environment = os.environ | {"PYTHON": "/no/such/python"}
    command = ["bash", str(ROOT / "scripts" / "run_train_tiny.sh"), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "setup: PYTHON=/no/such/python: no such program; give the path of an interpreter, or unset PYTHON\n",
    )


@pytest.fixture
def train_on_gpus(tmp_path):
    """Return a function that calls run_train_sd35.sh on made-up scorers, and prints the trainer's command line."""
    python = tmp_path / "python"  # it passes the check of setup_env.sh, and prints its arguments
    own = f'[[ $2 == *.yaml ]] && exec {sys.executable} "$@"'  # reads files and checks the flags
    python.write_text(f'#!/bin/bash\n{own}\n[ "$1" = - ] && echo "$0" || echo "$*"\n')
    python.chmod(0o755)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "model_index.json").touch()
    scorers = ("PICK_PROCESSOR", "PICK_MODEL", "IR_MODEL", "IR_MED_CONFIG", "DINO", "CLIP")

    def call(*flags: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHON": str(python),
            **dict.fromkeys(scorers, str(tmp_path)),
        }
        command = ["bash", str(ROOT / "scripts" / "run_train_sd35.sh"), *flags]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)

    return call


def test_empty_variables_leave_their_scorers_out(train_on_gpus, tmp_path):
    done = train_on_gpus(TEACHER=str(tmp_path / "own" / "model"), DINO="", CLIP="")
    assert done.returncode == 0 and "--dino_path  --clip_path  --run_dir" in done.stdout
    done = train_on_gpus(TEACHER=str(tmp_path / "own" / "model"), IR_MODEL="", IR_MED_CONFIG="no/such")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_without_evaluation_needs_no_scorer(train_on_gpus, tmp_path):
    model = str(tmp_path / "own" / "model")
    for flags in (["--eval_every", "0"], ["--eval_every=0"]):
        assert train_on_gpus(*flags, TEACHER=model, DINO="no/such/dino", IR_MODEL="no/such/ir").returncode == 0
    assert train_on_gpus("--eval_every", "60", TEACHER=model, DINO="no/such/dino").returncode == 2
    for every, status in ((0, 0), (60, 2)):
        (tmp_path / "mine.yaml").write_text(f"eval: {{eval_every: {every}}}\n")
        done = train_on_gpus("--config", str(tmp_path / "mine.yaml"), TEACHER=model, DINO="no/such/dino")
        assert done.returncode == status


def test_an_empty_word_is_no_flag(train_on_gpus, tmp_path):
    """It leaves one scorer out, at the end of the line or before other flags."""
    for words in (["--max_steps", "10", "--clip_path", ""], ["--clip_path", "", "--max_steps", "10"]):
        done = train_on_gpus(*words, TEACHER=str(tmp_path / "own" / "model"), CLIP="no/such")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"--dino_path {tmp_path} --run_dir " in done.stdout and "--prompt_txt data/prompts" in done.stdout


def test_the_flags_of_a_launch_replace_its_paths(train_on_gpus, tmp_path):
    """The script passes no path of its own beside a flag, or its name in diffusers, and a scorer may be left out."""
    model = str(tmp_path / "own" / "model")
    for flags in (
        ["--teacher_id", model],
        [f"--teacher_id={model}"],
        ["--teacher_id=~/own/model"],
        ["--pretrained_model_name_or_path", model, "--output_dir", "mine"],
    ):
        done = train_on_gpus(*flags, "--clip_path=", CLIP="no/such")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count(flags[0]) == 1 and done.stdout.count("--clip_path") == 1
        assert ("--teacher_id" in done.stdout) == ("--teacher_id" in flags[0])
        assert ("--run_dir" in done.stdout) == ("--output_dir" not in flags)
    done = train_on_gpus(TEACHER="some_organisation/a-model")
    assert done.returncode == 0 and "--teacher_id some_organisation/a-model --prompt_txt" in done.stdout
    done = train_on_gpus(TEACHER=model, FAKE=model)
    assert f"--fake_id {model} " in done.stdout and "--student_id" not in done.stdout


def test_a_file_that_sets_a_path_replaces_the_scripts_own(train_on_gpus, tmp_path):
    """What the environment or a flag sets is passed, and so wins over the file."""
    file = tmp_path / "mine.yaml"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    file.write_text(f"model: {{teacher_id: no/such/teacher}}\nprompt_txt: {prompts}\neval:\n  clip_path: no/such\n")
    model = str(tmp_path / "own" / "model")
    done = train_on_gpus("--config", str(file), CLIP=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "--teacher_id" not in done.stdout and "--prompt_txt" not in done.stdout
    assert f"--clip_path {tmp_path} --run_dir " in done.stdout
    done = train_on_gpus(f"--config={file}", "--clip_path=", TEACHER=model, PROMPTS=str(prompts))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--teacher_id {model} --prompt_txt {prompts} " in done.stdout


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TEACHER", "weights/nothing", "missing: weights/nothing/model_index.json — bash scripts/download_weights.sh"),
        (
            "ACCELERATE_CONFIG",
            "no.yaml",
            "missing: no.yaml — set ACCELERATE_CONFIG to one of scripts/",
        ),
        ("CLIP", "no/such/clip", "missing: no/such/clip — bash scripts/download_weights.sh clip"),
    ],
)
def test_a_launch_names_what_is_missing(train_on_gpus, tmp_path, variable, value, says):
    given = {"TEACHER": str(tmp_path / "own" / "model"), variable: value}
    done = train_on_gpus(**given)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(says)


@pytest.mark.parametrize(
    ("flags", "variables", "says"),
    [
        (["--kanchor", "3"], {}, "unrecognized arguments: --kanchor 3 (did you mean --k_anchor?)"),
        ([], {"PROMPTS": "no/such.txt"}, "--prompt_txt no/such.txt: cannot be read (No such file or directory)"),
        (
            [],
            {"ACCELERATE_CONFIG": "scripts/configs/sd35.yaml"},
            "ACCELERATE_CONFIG scripts/configs/sd35.yaml: no file of accelerate (no distributed_type); give one of "
            "scripts/accelerate_*.yaml",
        ),
    ],
)
def test_a_launch_checks_its_flags_on_one_process(train_on_gpus, tmp_path, flags, variables, says):
    done = train_on_gpus(*flags, **{"TEACHER": str(tmp_path / "own" / "model")} | variables)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"dpdmd.train: error: {says}")
    assert len(done.stderr.splitlines()) == 1
