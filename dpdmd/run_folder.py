"""The run folder: where every file of a run is.

RUN/config.yaml  metrics.jsonl  log/log.txt  ckpts/step_000600/{student,state}  ckpts/latest  process_vis/  ...
"""

import errno
import fcntl
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from dpdmd.config.options import MAX_COUNT, RunConfig
from dpdmd.utils import strict_yaml
from dpdmd.utils.atomic_files import clear_leftovers, is_temporary, temporary_path
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.folders import delete_tree, link_by_name, supports_links
from dpdmd.utils.manifest import MANIFEST, is_whole
from dpdmd.utils.paths import BEST, LATEST, is_system_file, linked_name, nearest_existing, same_place
from dpdmd.utils.text_files import require_regular

DEFAULT_RUN_DIR = "outputs/dpdmd"
STUDENT, LORA = "student", "lora"  # folders in a checkpoint: the complete pipeline, or with --lora_rank the adapter
STUDENT_EMA, LORA_EMA = f"{STUDENT}_ema", f"{LORA}_ema"  # the same of the moving average, with --ema_decay
CONFIG, CKPTS, LOCK = "config.yaml", "ckpts", ".lock"
LATEST_IMAGE = "latest.png"  # in process_vis/
EVAL_TURN = "eval"  # "turn" of the records of evaluations in metrics.jsonl
CONDITIONS = "conditions"  # of these records: what scores must share to be compared (`InLoopEvaluation.conditions`)
_PARTS = ("ckpt_dir", "log_path", "eval_dir", "process_folder_name", "diversity_folder_name")  # options of RunConfig
FP32_MAX = 3.41e38  # rounded up
_STEP = re.compile("step_([0-9]+)")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path
    log: Path
    ckpts: Path
    eval_images: Path
    process_vis: Path
    div_vis: Path

    @classmethod
    def from_config(cls, run: RunConfig) -> "RunFolder":
        """Derive the paths that are not given from `run_dir`, or without it from the parent of a given path."""
        first = next((path for path in (getattr(run, name) for name in _PARTS) if path), None)
        root = Path(run.run_dir) if run.run_dir else Path(first).parent if first else Path(DEFAULT_RUN_DIR)
        return cls(
            root=root,
            log=Path(run.log_path or root / "log"),
            ckpts=Path(run.ckpt_dir or root / CKPTS),
            eval_images=Path(run.eval_dir or root / "eval_images"),
            process_vis=Path(run.process_folder_name or root / "process_vis"),
            div_vis=Path(run.diversity_folder_name or root / "div_vis"),
        )

    @classmethod
    def of(cls, root: Path) -> "RunFolder":
        """Return the paths of the run at `root`. Of those that its config.yaml gives, the ones that exist count."""
        run = RunConfig(run_dir=str(root))
        with suppress(ValueError, LookupError, TypeError, OSError):  # none or a damaged one, or no access to a folder
            given = strict_yaml.read(root / CONFIG, CONFIG)["run"]
            run = replace(run, **{name: given[name] for name in _PARTS if given[name] and Path(given[name]).is_dir()})
        return cls.from_config(run)

    @property
    def config(self) -> Path:
        return self.root / CONFIG

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def teacher_scores(self) -> Path:
        return self.root / "teacher_scores.json"

    @property
    def figures(self) -> Path:
        """Result of `dpdmd.shapes.measure --out`, which the run's report shows."""
        return self.root / "figures.json"

    @property
    def anchor(self) -> Path:
        """The K that `--k_anchor auto` found, and everything that it depends on."""
        return self.root / "anchor.json"

    @property
    def wandb(self) -> Path:
        """The id of the run's W&B run, and the last step that a resumed run found in it."""
        return self.root / "wandb.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def seed_grids(self) -> Path:
        return self.root / "seed_grids"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def hub(self) -> Path:
        """The student as it is uploaded to the Hub: links to the last checkpoint's files, and the model card."""
        return self.root / "hub"

    @property
    def saved(self) -> Path:
        """Empty file that the first whole checkpoint leaves, so that checkpoints that are gone are missed."""
        return self.root / ".saved"

    @property
    def diagnostics(self) -> Path:
        return self.root / "diagnostics"

    @property
    def log_file(self) -> Path:
        return self.log / "log.txt"

    def checkpoint(self, step: int) -> Path:
        return self.ckpts / f"step_{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first: folders step_000600 with a manifest, which is written last."""
        return [path for path in self.numbered() if (path / MANIFEST).is_file()]

    def numbered(self) -> list[Path]:
        """Return all folders with the name of a checkpoint, also damaged and empty ones, oldest first."""
        return [path for _, path in step_folders(self.ckpts)]

    def latest(self) -> Path | None:
        """Return the newest checkpoint: the target of the link `latest`, else the one with the highest step.

        In a copy of a run without links, `latest` is a folder. It counts only if there is no other checkpoint, since it
        is not updated when the run continues.
        """
        copied = self.ckpts / LATEST
        found = self.checkpoints() or self.numbered()
        last = found[-1:] or ([copied] if copied.is_dir() else [])
        return self._linked(LATEST) or next(iter(last), None)

    def best(self) -> Path | None:
        """Return the target of the link `best`."""
        return self._linked(BEST)

    def _linked(self, name: str) -> Path | None:
        target = linked_name(self.ckpts / name)
        return self.ckpts / target if target and (self.ckpts / target).is_dir() else None

    def point(self, name: str, target: Path) -> None:
        """Let the link `latest` or `best` point to a checkpoint, atomically. A folder of that name is renamed.

        On a file system without links a text file with the checkpoint's name takes the link's place.
        """
        link, temporary = self.ckpts / name, temporary_path(self.ckpts / name)
        temporary.unlink(missing_ok=True)
        link_by_name(target.name, temporary)
        if link.is_dir() and not link.is_symlink():
            taken = {path.name for path in self.ckpts.iterdir()}
            names = (f"{name}_copied_{number}" for number in range(len(taken) + 1))
            os.replace(link, self.ckpts / next(each for each in names if each not in taken))
        os.replace(temporary, link)

    def supports_links(self) -> bool:
        """Return whether checkpoints can hold symbolic links. If `latest` is one, nothing is written to find out."""
        return (self.ckpts / LATEST).is_symlink() or supports_links(nearest_existing(self.ckpts))

    def to_resume(self, wanted: str | None) -> Path | None:
        """Return the checkpoint that `--resume_from_checkpoint` names, or None if a run starts anew."""
        return self.latest() if wanted == LATEST else Path(wanted) if wanted else None

    def unpoint(self, name: str) -> None:
        """Delete the link `latest` or `best`, or the text file in its place; a folder of that name stays."""
        link = self.ckpts / name
        if link.is_symlink() or link.is_file():
            link.unlink()

    def owns(self, checkpoint: Path) -> bool:
        """Return whether a checkpoint is one of this run's, or a link among them leads to it."""
        return self.ckpts.is_dir() and any(same_place(path, checkpoint) for path in self.ckpts.iterdir())

    def has_nothing_to_lose(self) -> bool:
        """Return whether a run has begun here and has saved nothing: a new start only repeats its steps."""
        return self._has_begun() and not self.saved.exists() and not self.numbered()

    def start_anew(self) -> None:
        """Delete the records of a run that began here and saved nothing: its settings may have been others."""
        for path in (self.saved, self.metrics, self.wandb):
            path.unlink(missing_ok=True)
        delete_tree(self.seed_grids)

    def continue_from(self, checkpoint: Path) -> None:
        """Let `latest` point to `checkpoint`, if it is one of this run's numbered checkpoints.

        Later ones are left behind. From now on they are older, so that none of them is taken for one that a killed
        process wrote without moving the link.
        """
        for path in self.checkpoints():
            if same_place(path, checkpoint):
                self.point(LATEST, path)
                with suppress(OSError):  # another user's
                    os.utime(path / MANIFEST)

    def check_files(self) -> None:
        """Check that no folder has the name of a file that the run writes, and that the log can be continued.

        Raises:
            ValueError: one line that names the path.
        """
        for path in (self.config, self.environment, self.metrics, self.teacher_scores, self.log_file, self._lock):
            if path.is_dir():
                raise ValueError(f"{path}: is a folder, but the run writes a file there; move it away")
        for path in (self.log_file, self._lock):
            if path.exists() and not os.access(path, os.W_OK):
                raise ValueError(f"{path}: is not writable; make it writable, or move it away")

    def by_flag(self) -> dict[str, Path]:
        """Return the output folders by their flags."""
        return {
            "--run_dir": self.root,
            "--log_path": self.log,
            "--ckpt_dir": self.ckpts,
            "--eval_dir": self.eval_images,
            "--process_folder_name": self.process_vis,
            "--diversity_folder_name": self.div_vis,
        }

    def scattered(self) -> list[Path]:
        """Return the output folders outside the root."""
        root = self.root.absolute()
        return [path for path in self.by_flag().values() if not path.absolute().is_relative_to(root)]

    def flag_in_use(self) -> str | None:
        """Return the flag of the first of the run's folders that holds files, or None if all are free.

        Files of a run that ended before its first step, for example because a model did not load, do not count, nor do
        temporary files and those of file managers.
        """
        ours = {self.config, self.environment, self.log_file, self._lock, self.saved, self.anchor}
        begun = ours if self._has_begun() else set()
        return next((flag for flag, folder in self.by_flag().items() if _holds_files(folder, begun)), None)

    def _has_begun(self) -> bool:
        """Return whether a run has begun here: other programs do not write these files."""
        return self._lock.exists() or self.environment.exists()

    @property
    def _lock(self) -> Path:
        return self.root / LOCK

    def lock(self) -> IO[str] | None:
        """Lock the run folder against other training processes until the returned file is closed.

        Returns:
            The locked file, or None if the file system has no locks.

        Raises:
            ValueError: another process holds the lock.
        """
        file = self._lock.open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"--run_dir {self.root}: another process is training there; wait until it ends, or give another"
                ) from None
            return None
        return file

    def create(self) -> None:
        """Create the folders."""
        for path in self.by_flag().values():
            path.mkdir(parents=True, exist_ok=True)

    def half_written(self) -> list[Path]:
        """Return checkpoints that a killed process was writing or deleting."""
        return sorted(self.ckpts.glob(".step_*.tmp"))

    def restore_checkpoints(self) -> None:
        """Rename each whole checkpoint that a kill left under a temporary name, unless another process trains here.

        A checkpoint that is written again is renamed away just before the new one takes its name.
        """
        names = [path.name[1:].removesuffix(".tmp").removesuffix(".old") for path in self.half_written()]
        gone = [self.ckpts / name for name in dict.fromkeys(names) if not os.path.lexists(self.ckpts / name)]
        try:
            lock = self.lock() if gone and self.root.is_dir() else None
        except ValueError:
            return
        if lock:
            with lock:
                for path in gone:
                    for left in (path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old.tmp")):
                        if not os.path.lexists(path) and is_whole(left):  # the new one, else the old one
                            os.replace(left, path)

    def clear_leftovers(self) -> None:
        """Delete temporary files, folders and links of a killed process. Call this only with the lock held."""
        for path in (*self.half_written(), *self.seed_grids.glob(".*.tmp")):
            with suppress(OSError):
                delete_tree(path)
        links = (self.ckpts / LATEST, self.ckpts / BEST)
        dangling = [link for link in links if linked_name(link) and not self._linked(link.name)]
        for link in (*map(temporary_path, links), *dangling):
            link.unlink(missing_ok=True)
        images = (self.eval_images, self.process_vis, self.div_vis)
        below = (path for folder in images for path in folder.rglob("*") if path.is_dir())
        clear_leftovers((self.root, self.diagnostics, *images, *below))


def check_no_run(flag: str, folder: Path) -> None:
    """Check that another program's output folder is not a run's.

    Raises:
        ValueError: one line that names `flag`.
    """
    run = RunFolder.of(folder)
    if run.metrics.exists() or (folder / LOCK).exists():
        raise ValueError(f"{flag} {folder}: is the folder of a run, whose files it would replace; give another")


def _holds_files(folder: Path, ignored: set[Path]) -> bool:
    """Return whether there is a file at any depth, except `ignored`, temporary files and those of file managers."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return any(
        not (path in ignored or is_temporary(path) or is_system_file(path.relative_to(folder))) for path in paths
    )


def step_folders(root: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of each folder step_000600 in `root`, in the order of the steps."""
    found = ((step_of(path), path) for path in root.glob("step_*"))
    return sorted((step, path) for step, path in found if step is not None and path.is_dir())


def step_of(checkpoint: Path) -> int | None:
    """Return the step in a checkpoint's name; None if the name is another one."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def read_records(path: Path, odd: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl in order. A last line that a kill has cut is skipped.

    Args:
        odd: gets a line about each record that no run has written, and the record is left out. Without it, such a
            record is an error.

    Raises:
        OSError: the file cannot be read.
        ValueError: no run has written one of the lines; the message names the file and the line.
    """
    require_regular(path)
    found = []
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate([*lines, last] if _is_json(last) else lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_read_record(line))
        except (ValueError, RecursionError) as error:
            message = f"{path}, line {number}: no record of a run ({shorten_error(error)}); correct or delete the line"
            if odd is None:
                raise ValueError(message) from None
            odd.append(message)
    return found


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def comparable_with_last(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of evaluations, sorted by step, that were made under the conditions of the last one.

    A resume with other prompts, seeds or scorers changes the conditions. Records of older versions have none and are
    kept.
    """
    conditions = evaluations[-1].get(CONDITIONS) if evaluations else None
    return [record for record in evaluations if record.get(CONDITIONS, conditions) == conditions]


def _read_record(line: str) -> dict[str, Any]:
    """Read one record, whose values are numbers or missing.

    Raises:
        ValueError: it is not as a run writes it.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    turn, step = record.get("turn"), record.get("step")
    if not (isinstance(turn, str) and turn and type(step) is int and 0 <= step <= MAX_COUNT):
        raise ValueError("needs a turn, which is text, and a step, which is a whole number")
    for name, value in record.items():
        if name not in ("turn", "step", "size", CONDITIONS) and not (value is None or _is_number(value)):
            raise ValueError(f"{name} is no number in the range of fp32")
    return record


def _is_number(value: object) -> bool:
    """Return whether a value is a number that a run can measure, in fp32: infinities and NaN included.

    Larger numbers cannot be plotted: even the difference of two of them may not fit a float.
    """
    return isinstance(value, (int, float)) and not FP32_MAX < abs(value) < math.inf
