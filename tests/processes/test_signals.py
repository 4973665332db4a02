"""A signal ends a program with one line and status 128 + the signal's number, and no half-written file stays."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpdmd.utils.atomic_files import clear_leftovers
from dpdmd.utils.image_grid import Image, save_image
from dpdmd.utils.signals import SIGNALS

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    *("train", "doctor", "generate", "export", "compare", "report"),
    *("shapes.measure", "shapes.measure_scorers", "shapes.build"),
)
COMMANDS = {name: ["-m", f"dpdmd.{name}"] for name in PROGRAMS} | {
    name: [name] for name in ("test_preference.py", "test_quality.py", "test_diversity.py")
}


def handles(process: subprocess.Popen, number: int) -> bool:
    """Return whether a process has installed a handler for a signal that Python itself does not handle."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not list the handlers of a process"
)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_while_a_program_is_imported_is_one_line(name):
    """The interrupt comes as soon as the program handles signals; before that, only Python has started."""
    command = [sys.executable, *COMMANDS[name]]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not handles(process, SIGNALS[-1]) and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    program = name if name.endswith(".py") else f"dpdmd.{name}"
    assert err == f"{program}: stopped: SIGINT; files written before are complete\n"
    assert process.returncode == 130


WRITING = """
import os, signal, sys
from dpdmd.utils import signals
signals.install_exit_handlers("program")
import tqdm
from pathlib import Path
from dpdmd.utils.atomic_files import delete_on_failure, replacing
folder = Path(sys.argv[1])
with delete_on_failure(folder / ".model.tmp") as model, replacing(folder / "image.png") as image:
    model.mkdir()
    (model / "weights").write_text("half")
    image.write(b"half")
    for _ in tqdm.tqdm(range(2)):
        os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_deletes_half_written_files(tmp_path, number):
    """The message has its own line, below the progress bar."""
    command = [sys.executable, "-c", WRITING, str(tmp_path), str(int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + number
    assert done.stderr.split("\n")[-2:] == [f"program: stopped: {number.name}; files written before are complete", ""]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("launcher", "status"), [({}, 0), ({"TORCHELASTIC_RUN_ID": "run"}, 129)])
def test_an_ignored_hangup_stays_ignored_unless_a_launcher_passes_it_on(launcher, status):
    script = "import os, signal\nfrom dpdmd.utils import signals\nsignals.install_exit_handlers('program')\n"
    script += "with signals.StopSignals() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n"
    script += "    assert stop.received == int(os.environ['EXPECTED'])\nos.kill(os.getpid(), signal.SIGHUP)"
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", script]
    environment = {**os.environ, **launcher, "EXPECTED": "1" if launcher else "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr == ("program: stopped: SIGHUP; files written before are complete\n" if status else "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_program_goes_on_when_nobody_reads_its_output(tmp_path, unbuffered):
    """`| head` ends the reader; a full device is still an error."""
    script = "import sys\nfrom pathlib import Path\nfrom dpdmd.utils import signals\n"
    script += "signals.install_exit_handlers('program')\nprint('é', flush=True)\nsys.stdin.read()\n"
    script += "[print(text, file=file, flush=True) for text in 'ab' for file in (sys.stdout, sys.stderr)]\n"
    script += "Path(sys.argv[1]).touch()\nprint('left in the buffer')\nsys.exit(signals.final_status(0))"
    command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, str(tmp_path / "done")], cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout.readline().decode() == "é\n"
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 0 and (tmp_path / "done").exists()
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, str(tmp_path / "full")], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=full,
                stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode != 0 and "No space left" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "utf-8"])
def test_a_letter_that_the_terminal_lacks_ends_no_program(encoding):
    """The second letter is a byte of a file's name that is not UTF-8."""
    script = "import sys\nfrom dpdmd.utils import signals\nsignals.install_exit_handlers('program')\n"
    script += "[file.write('\u00fc \\udcff\\n') for file in (sys.stdout, sys.stderr)]"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout == done.stderr
    assert done.stdout == ("\u00fc" if encoding == "utf-8" else "\\xfc").encode() + b" \\udcff\n"


def test_a_second_interrupt_of_a_training_is_one_line(short_run, tmp_path):
    """The run does not wait for the step; earlier checkpoints stay."""
    run = ["--run_dir", str(tmp_path / "run"), "--max_steps", "6", "--ckpt_every", "1", "--vis_every", "0"]
    command = [sys.executable, str(ROOT / "tests" / "processes" / "drivers" / "impatient.py"), *short_run, *run]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "dpdmd.train: stopped: SIGINT; files written before are complete"
    assert (tmp_path / "run" / "ckpts" / "step_000001" / "manifest.json").is_file()


def test_a_signal_after_the_work_is_done_changes_nothing():
    """While Python shuts down, it resets signal handlers, so that a signal would end it without a message."""
    script = (
        "import os, signal, sys\nfrom dpdmd.utils import signals\nsignals.install_exit_handlers('program')\n"
        "class Tidied:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "kept = Tidied()\nsys.exit(signals.final_status(3))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 3 and done.stderr == b""


def test_leftovers_of_killed_processes_are_deleted_and_open_files_stay(tmp_path):
    """The lock shows the difference: the system releases it when a process is killed."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom dpdmd.utils.atomic_files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n    print('writing', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "picture.png")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        somebodys = tmp_path / ".notes.tmp"
        somebodys.write_text("")
        clear_leftovers([tmp_path, tmp_path / "missing"])
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(writer.pid, signal.SIGKILL)
    clear_leftovers([tmp_path])
    assert list(tmp_path.iterdir()) == [somebodys]
    save_image(Image.new("RGB", (8, 8)), tmp_path / "picture.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("redirection", "status", "err"),
    [
        (">&-", 0, ""),
        pytest.param(
            "> /dev/full",
            1,
            "stopped: [Errno 28] No space left on device: 'standard output'\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full"),
        ),
    ],
)
def test_a_last_line_that_cannot_be_written_is_no_traceback(redirection, status, err):
    code = "import sys; from dpdmd.utils import signals; signals.install_exit_handlers('program'); "
    code += "sys.stdout.write('out/report.html\\n'); sys.exit(signals.final_status(0))"
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-c", code]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, err)
