"""TensorBoard and W&B get metrics, images and the configuration; a resumed run continues them without repeating steps.

The tests of W&B run with a module that records calls, and if the package is installed with the real one, offline.
"""

import json
import os
import socket
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpdmd import config, train
from dpdmd.training import trackers

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = 12


class FakeRun:
    """One session of a W&B run. Like W&B, it ignores a step before its current one."""

    disabled, url = False, "https://wandb.test/run"

    def __init__(self, options: dict, step: int):
        self.options, self.id, self.step = options, options["id"] or "made-id", step
        self.rows, self.settled, self.exit_code = [], {}, None
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.settled.update(values))

    def log(self, values: dict, step: int) -> None:
        assert step >= self.step, "W&B ignores such rows"
        self.step = step
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeSettings(SimpleNamespace):
    model_fields = ("silent", "console")  # those of an old version


class FakeWandB:
    """The part of the module wandb that a run uses."""

    Settings, __spec__ = FakeSettings, ModuleSpec("wandb", None)

    def __init__(self) -> None:
        self.sessions: list[FakeRun] = []

    def Image(self, image: Image.Image) -> Image.Image:
        return image

    def init(self, **options) -> FakeRun:
        earlier = [run.step for run in self.sessions if run.id == options["id"]]
        self.sessions.append(FakeRun(options, max(earlier) + 1 if earlier else 0))
        return self.sessions[-1]


@pytest.fixture
def fake_wandb(monkeypatch) -> FakeWandB:
    module = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def flags(short_run, tiny_scorers, tmp_path) -> list[str]:
    """A run with a student update every second step, images of each, and evaluations at steps 0, 6 and 12."""
    prompts = short_run[short_run.index("--prompt_txt") + 1]
    scorer = ["--clip_path", tiny_scorers["clip_path"], "--num_div_seeds", "2", "--div_prompts", prompts]
    schedule = ["--per_train_fake_num", "1", "--vis_every", "2", "--ckpt_every", "6", "--max_steps", str(STEPS)]
    return [*short_run, *scorer, *schedule, "--run_dir", str(tmp_path / "my-run")]


def run_and_resume(flags: list[str], tracker: str, run: Path) -> None:
    """Train to the end, go back to step 6 as after a kill, and train to the end again."""
    assert train.main([*flags, "--report_to", tracker]) == 0
    checkpoint = str(run / "ckpts" / "step_000006")
    assert train.main([*flags, "--report_to", tracker, "--resume_from_checkpoint", checkpoint]) == 0


def test_tensorboard_has_every_step_once_after_a_resume(flags, tmp_path):
    run = tmp_path / "my-run"
    run_and_resume([*flags, "--tracker_project_name", "shapes"], "tensorboard", run)
    assert len(list((run / "log" / "shapes").glob("events.*"))) == 2
    events = EventAccumulator(str(run / "log" / "shapes"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in tags["scalars"]}
    assert steps["fake/loss_fake"] == [1, 3, 5, 7, 9, 11] and steps["student/loss_dmd"] == [2, 4, 6, 8, 10, 12]
    assert {tag.partition("/")[0] for tag in steps} == {"student", "fake", "eval"}
    assert all(found == [0, 6, 12] for tag, found in steps.items() if tag.startswith("eval/"))
    images = {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}
    assert images["process_vis/latest"] == [2, 4, 6, 8, 10, 12]
    assert {tag.partition("/")[0] for tag in images} == {"process_vis", "seed_grids", "div_vis"}
    assert all(
        found == ([0] if "/teacher/" in tag else [0, 6, 12])
        for tag, found in images.items()
        if not tag.startswith("process_vis")
    )
    assert any("/teacher/" in tag for tag in images)
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("config/text_summary")]
    assert [step for step, _ in texts] == [1, 7] and "k_anchor: 2" in texts[0][1] and "seed: 3" in texts[0][1]


def test_wandb_has_every_step_once_after_a_resume(flags, tmp_path, fake_wandb):
    run = tmp_path / "my-run"
    run_and_resume(flags, "wandb", run)
    first, second = fake_wandb.sessions
    assert (first.options["project"], first.options["name"], first.options["id"]) == ("dpdmd", "my-run", None)
    assert (second.options["name"], second.options["id"], second.options["resume"]) == (None, "made-id", "allow")
    assert first.options["dir"] == str(run / "log") and json.loads((run / "wandb.json").read_text())["id"] == "made-id"
    assert first.settled["k_anchor"] == 2 and first.settled["tracker_project_name"] == "dpdmd"
    counts = Counter((step, name) for session in (first, second) for step, row in session.rows for name in row)
    assert set(counts.values()) == {1}
    assert {step for step, name in counts if name == "fake/loss_fake"} == {1, 3, 5, 7, 9, 11}
    assert {step for step, name in counts if name == "process_vis/latest"} == {2, 4, 6, 8, 10, 12}
    assert {step for step, name in counts if name.startswith("seed_grids/") and "/teacher/" not in name} == {0, 6, 12}
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_a_longer_run_continues_wandb_and_a_new_folder_begins_another(flags, tmp_path, fake_wandb):
    assert train.main([*flags, "--report_to", "wandb", "--tracker_run_name", "named"]) == 0
    more = ["--report_to", "wandb", "--max_steps", "14", "--resume_from_checkpoint"]
    assert train.main([*flags, *more, "latest"]) == 0
    checkpoint = str(tmp_path / "my-run" / "ckpts" / "step_000012")
    assert train.main([*flags, *more, checkpoint, "--run_dir", str(tmp_path / "other")]) == 0
    named, continued, other = fake_wandb.sessions
    assert named.options["name"] == "named" and (other.options["id"], other.options["name"]) == (None, "other")
    for session in (continued, other):
        assert {step for step, row in session.rows if "student/loss_dmd" in row} == {14}


def test_an_evaluation_that_a_kill_prevented_reaches_wandb(tmp_path, fake_wandb, monkeypatch):
    """W&B is ahead of the checkpoint, and takes no step before its own."""
    folder = trackers.RunFolder.of(tmp_path)
    settled = config.parse(["--report_to", "wandb", "--run_dir", str(tmp_path)])
    first = trackers.start_tracker(settled, folder, 0, 0)
    for step in range(1, 9):
        first.log({"fake/loss_fake": 1.0}, step)
    second = trackers.start_tracker(settled, folder, 6, 8)
    second.log({"eval/pick": 2.0}, 6)
    for step in range(7, 11):
        second.log({"fake/loss_fake": 1.0}, step)
    rows = fake_wandb.sessions[1].rows
    assert [row for _, row in rows] == [{"eval/pick": 2.0}, {"fake/loss_fake": 1.0}, {"fake/loss_fake": 1.0}]
    assert [step for step, _ in rows] == [9, 9, 10]
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(fake_wandb, "init", lambda **_: (_ for _ in ()).throw(ConnectionError))
        trackers.start_tracker(settled, folder, 6, 10)
    assert json.loads(folder.wandb.read_text()) == {"id": "made-id", "written": 10}  # known even if W&B fails
    third = trackers.start_tracker(settled, folder, 6, 7)  # a kill before the second session reached the first's steps
    third.log({"fake/loss_fake": 1.0}, 8)
    assert not fake_wandb.sessions[2].rows and third.close(failed=True) is None
    assert fake_wandb.sessions[2].exit_code == 1


def test_a_login_that_fails_is_one_line_without_the_key(flags, tmp_path, fake_wandb, monkeypatch, capsys):
    def broken(**_):
        raise ConnectionError(f"POST https://me:{KEY[:9]}@host/graphql\nkey {KEY}: 401")

    monkeypatch.setattr(fake_wandb, "init", broken)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = tmp_path / "my-run"
    assert train.main([*flags, "--report_to", "wandb"]) == 0
    log = (run / "log" / "log.txt").read_text()
    lines = [line for line in log.splitlines() if "tracker" in line]
    assert len(lines) == 1 and "https://***@host/graphql key ***: 401" in lines[0]
    assert not (run / "wandb.json").exists() and len((run / "metrics.jsonl").read_text().splitlines()) == STEPS + 3
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert not any(KEY.encode() in content for content in written)
    assert KEY not in "".join(capsys.readouterr())


def test_images_have_the_stated_size(tmp_path):
    folder = trackers.RunFolder.of(tmp_path)
    folder.create()
    Image.new("RGB", (3000, 1500)).save(folder.process_vis / "latest.png")
    assert trackers.process_image(folder)["process_vis/latest"].size == (trackers.SIDE, trackers.SIDE // 2)
    (folder.process_vis / "latest.png").write_bytes(b"half")
    assert trackers.process_image(folder) == {}


@pytest.mark.parametrize("flag", ["tracker_project_name", "tracker_run_name"])
@pytest.mark.parametrize("name", ["a/b", "..", "x" * 129, "two\nlines", "what?", " ", "trailing "])
def test_a_name_that_a_tracker_cannot_use(flag, name):
    with pytest.raises(ValueError, match=f"^--{flag} "):
        config.parse([f"--{flag}", name])


def wandb_contents(data: bytes) -> list[bytes]:
    """Return the contents of a .wandb file: LevelDB's log format after seven bytes of W&B's own."""
    assert data.startswith(b":W&B")
    place, block, contents, parts = 7, 32768, [], b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # too little for a header: padding
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            contents.append(parts)
            parts = b""
    return contents


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
class TestRealWandB:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch, tmp_path):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no login of this user
        monkeypatch.chdir(tmp_path)
        yield
        import wandb

        wandb.teardown()

    def rows(self, run: Path) -> list[tuple[int, str]]:
        """Return (step, name) of each value in the files of all sessions."""
        from wandb.proto import wandb_internal_pb2

        found = []
        for path in sorted((run / "log" / "wandb").glob("offline-run-*/*.wandb")):
            for content in wandb_contents(path.read_bytes()):
                record = wandb_internal_pb2.Record.FromString(content)
                names = {item.key or item.nested_key[0] for item in record.history.item}  # an image has several items
                found += [(record.history.step.num, name) for name in names if not name.startswith("_")]
        return found

    def test_offline_files_lie_in_the_run_folder(self, flags, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        run = tmp_path / "my-run"
        run_and_resume(flags, "wandb", run)
        identity = json.loads((run / "wandb.json").read_text())["id"]
        sessions = list((run / "log" / "wandb").glob("offline-run-*"))
        assert len(sessions) == 2 and all(path.name.endswith(identity) for path in sessions)
        counts = Counter(self.rows(run))
        assert set(counts.values()) == {1}
        assert {step for step, name in counts if name == "fake/loss_fake"} == {1, 3, 5, 7, 9, 11}
        assert {step for step, name in counts if name == "process_vis/latest"} == {2, 4, 6, 8, 10, 12}
        assert list((run / "log" / "wandb").rglob("media/images/**/*.png"))
        assert not (tmp_path / "wandb").exists()
        written = [path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
        assert not any(KEY.encode() in content for content in written)

    @pytest.mark.parametrize("key", [None, KEY])
    def test_no_login_and_no_network_are_one_line(self, flags, tmp_path, monkeypatch, capfd, key):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
            monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
            if key:
                monkeypatch.setenv("WANDB_API_KEY", key)
            assert train.main([*flags, "--report_to", "wandb"]) == 0
        run = tmp_path / "my-run"
        log = (run / "log" / "log.txt").read_text()
        assert log.count("the tracker failed") == 1
        assert len((run / "metrics.jsonl").read_text().splitlines()) == STEPS + 3
        printed = "".join(capfd.readouterr())
        assert KEY not in log and KEY not in printed
