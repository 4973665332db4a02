"""Experiment trackers, TensorBoard and W&B: metrics, images and the configuration of one run. Rank 0 only.

A resumed run repeats the steps after its checkpoint. TensorBoard drops the first copy of them, and W&B, which cannot
delete, does not get the second.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from PIL import Image

from dpdmd.config import Config
from dpdmd.config.validation import MAX_NAME
from dpdmd.evaluation import seed_grids
from dpdmd.run_folder import LATEST_IMAGE, RunFolder
from dpdmd.sampling.image_folder import open_image
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.logging import logger
from dpdmd.utils.text_files import read_json

SIDE = 1024  # pixels of the longer side of an image, a whole grid: as PNG at most about 2 MB, as in a browser window
LOGIN_SECONDS, FINISH_SECONDS = 60, 300  # what training waits for a person to log in, and for the last uploads


class Tracker(Protocol):
    """What the record of a run needs of a tracker. A method raises whatever the tracker's library raises."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def start_tracker(config: Config, folder: RunFolder, first_step: int, recorded: int) -> Tracker:
    """Start the tracker `--report_to`, and log the configuration.

    Args:
        first_step: steps that are done.
        recorded: the last step that earlier sessions of this run recorded; more than `first_step` after a kill.
    """
    if config.run.report_to == "wandb":
        return WandB(config, folder, first_step, recorded)
    return TensorBoard(config, folder, first_step)


class TensorBoard:
    """Event files in RUN/log/PROJECT, or with `--tracker_run_name` in RUN/log/PROJECT/NAME."""

    def __init__(self, config: Config, folder: RunFolder, first_step: int):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        path = folder.log / config.run.tracker_project_name / (config.run.tracker_run_name or "")
        # The viewer drops what earlier files have from step purge_step on.
        self._writer = SummaryWriter(str(path), purge_step=first_step + 1)
        text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # a code block in Markdown
        self._writer.add_text("config", indented, first_step + 1)
        for summary in hparams(_flat(config), {}):
            self._writer.file_writer.add_summary(summary, first_step + 1)
        self._writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a checkpoint must not be ahead of the events, or a killed run would leave a gap

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        for name, image in images.items():
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WandB:
    """A W&B run. RUN/wandb.json holds its id, and RUN/log/wandb its files."""

    def __init__(self, config: Config, folder: RunFolder, first_step: int, recorded: int):
        import wandb

        known = _read_identity(folder.wandb)
        own_name = folder.root.absolute().name[:MAX_NAME] if known is None else None  # later W&B's may differ
        self._image, self._first_step = wandb.Image, first_step
        # Offline, W&B itself does not know which steps an earlier session wrote.
        self._written = max(known["written"], recorded) if known else 0
        if known:  # before W&B can fail: metrics.jsonl no longer has those steps
            _write_identity(folder.wandb, known["id"], self._written)
        self._run = wandb.init(
            project=config.run.tracker_project_name,
            name=config.run.tracker_run_name or own_name or None,
            id=known["id"] if known else None,
            resume="allow",
            dir=str(folder.log),
            settings=wandb.Settings(**_settings(wandb)),
        )
        if self._run.disabled:
            logger.warning("W&B records nothing: WANDB_MODE is disabled, or nobody logged in")
            return
        _write_identity(folder.wandb, self._run.id, self._written)
        self._run.config.update(_flat(config), allow_val_change=True)
        logger.info(
            "W&B run %s: %s", self._run.id, self._run.url or f"offline; wandb sync {self._run.settings.sync_dir}"
        )
        if self._written > first_step:
            logger.info("W&B has the steps up to %d and gets the later ones", self._written)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self._run.disabled:
            return
        if step == self._first_step:  # an evaluation that the session before did not reach; W&B takes no earlier step
            self._run.log(values, step=max(step, self._run.step))
        elif step > self._written:
            self._run.log(values, step=step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        self.log({name: self._image(image) for name, image in images.items()}, step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _settings(wandb: Any) -> dict[str, Any]:
    """Return W&B's settings for a run that must neither wait for W&B without end nor print more than log.txt has."""
    wanted = {
        "silent": True,
        "console": "off",
        "login_timeout": LOGIN_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
    }
    return {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}  # older versions


def _read_identity(path: Path) -> dict[str, Any] | None:
    """Return the id of the W&B run and the last step in it; None if the file is missing or damaged."""
    try:
        found = read_json(path)
        return {"id": str(found["id"]), "written": int(found["written"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_identity(path: Path, run_id: str, written: int) -> None:
    write_text(path, json.dumps({"id": run_id, "written": written}) + "\n")


def _flat(config: Config) -> dict[str, Any]:
    """Return the options by name; neither tracker shows None."""
    options = {name: value for group in config.as_dict().values() for name, value in group.items()}
    return {name: "" if value is None else value for name, value in options.items()}


def describe_failure(error: BaseException) -> str:
    """Return a tracker's error on one line, without W&B's key and without passwords in addresses."""
    text, key = str(error), os.environ.get("WANDB_API_KEY", "").strip()
    if key:
        text = text.replace(key, "***")
    text = re.sub(r"://[^/@\s]+@", "://***@", text)
    return f"{type(error).__name__}: {shorten_error(Exception(text))}"


def process_image(folder: RunFolder) -> dict[str, Image.Image]:
    """Return the grid of the last update that was shown, under its name in a tracker."""
    return _read_images({"process_vis/latest": folder.process_vis / LATEST_IMAGE})


def evaluation_images(folder: RunFolder, step: int, *, teacher: bool) -> dict[str, Image.Image]:
    """Return the seed grids of an evaluation and the grids of the same prompts in div_vis, under names in a tracker.

    Args:
        teacher: whether to return the teacher's seed grids too.
    """
    grids, found = seed_grids.read(folder.seed_grids), {}
    for grid in grids.get(step, []):
        name = f"{grid.image_set}/{grid.file.stem}"
        found[f"seed_grids/{name}"] = grid.file
    for name in {grid.image_set: None for grid in grids.get(step, [])}:
        files = sorted((folder.div_vis / name).glob("*.png"))[: seed_grids.PROMPTS]
        found |= {f"div_vis/{name}/{file.stem}": file for file in files}
    if teacher:
        for grid in grids.get(seed_grids.TEACHER, []):
            found[f"seed_grids/teacher/{grid.image_set}/{grid.file.stem}"] = grid.file
    return _read_images(found)


def _read_images(files: Mapping[str, Path]) -> dict[str, Image.Image]:
    """Read images, scaled down to SIDE; leave out those that cannot be read."""
    images = {}
    for name, file in files.items():
        try:
            images[name] = open_image(file)
        except ValueError as error:
            logger.warning("the tracker will lack an image: %s", error)
            continue
        images[name].thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return images
