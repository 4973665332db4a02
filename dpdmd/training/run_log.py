"""The record of a run: metrics.jsonl (every step), log.txt, tracker and progress bar. Rank 0 only."""

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from dpdmd.config import Config
from dpdmd.distributed.topology import device_name
from dpdmd.evaluation import seed_grids
from dpdmd.run_folder import EVAL_TURN, RunFolder, read_records
from dpdmd.training import trackers
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.logging import logger
from dpdmd.utils.versions import versions

_TIME_AND_MEMORY = ("seconds", "samples_per_second", "memory_gb")


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in GB: allocated on the GPU, or on a CPU the resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return the content of environment.json: device, processes, system, versions."""
    return {
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


class RunLog:
    """The record of one run. On ranks other than 0 every method does nothing.

    A resumed run first drops the records after its checkpoint, since it repeats those steps.
    """

    def __init__(self, folder: RunFolder, config: Config, accelerator: Accelerator, first_step: int, total_steps: int):
        self.every = config.run.log_every
        self.active = accelerator.is_main_process
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=config.method.method, disable=not self.active, unit="step"
        )
        self.evaluations: list[dict[str, Any]] = []  # including those before a resume
        self._latest: dict[str, dict[str, Any]] = {}  # update's name -> its last record, also from before a resume
        if not self.active:
            return
        recorded = 0
        if folder.metrics.exists():
            kept, recorded = _drop_later_steps(folder.metrics, first_step)
            self.evaluations = [record for record in kept if record["turn"] == EVAL_TURN]
            self._latest = {record["turn"]: record for record in kept if record["turn"] != EVAL_TURN}
        seed_grids.drop_later(folder.seed_grids, first_step)
        self.file = folder.metrics.open("a", encoding="utf-8")
        self.folder, self.tracker = folder, None
        if config.run.report_to != "none":
            with self._tracking():
                self.tracker = trackers.start_tracker(config, folder, first_step, recorded)

    def step(self, record: dict[str, Any]) -> None:
        """Record one update: `record` has `step` (1 for the first), `turn` (the update's name), and metrics."""
        if not self.active:
            return
        self._write(record)
        self._latest[record["turn"]] = record
        metrics = _metrics(record)
        self.bar.update()
        self.bar.set_postfix(
            {
                name: f"{value:.4g}"
                for latest in self._latest.values()
                for name, value in _metrics(latest).items()
                if name.startswith("loss")
            },
            refresh=False,
        )
        named = {f"{record['turn']}/{name}": value for name, value in metrics.items()}
        if self.tracker:
            with self._tracking():
                self.tracker.log(named, record["step"])
        if record["step"] % self.every == 0:
            logger.info("%s", self._line(record))

    def _line(self, record: dict[str, Any]) -> str:
        """Return the metrics of an update, and those of the latest update of the other network."""
        size = f"size={record['size']} " if "size" in record else ""
        parts = [f"step {record['step']} {record['turn']} {size}{_listed(_metrics(record))}"]
        for turn, latest in self._latest.items():
            if turn != record["turn"]:
                own = {name: value for name, value in _metrics(latest).items() if name not in _TIME_AND_MEMORY}
                parts.append(f"{turn} at step {latest['step']}: {_listed(own)}")
        return " | ".join(parts)

    def evaluation(self, record: dict[str, Any], table: str) -> None:
        """Record one evaluation: `record` has `step`, `turn`, and scores whose names begin with eval/ or eval_ema/."""
        if not self.active:
            return
        self._write(record)
        self.evaluations.append(record)
        logger.info("%s", table)
        if self.bar.n == self.bar.initial:
            self.bar.unpause()  # else the evaluation would count into the first step's time
        if self.tracker:
            scores = {name: value for name, value in record.items() if name.startswith("eval") and value is not None}
            teacher = len(self.evaluations) == 1  # the teacher's images stay the same
            images = trackers.evaluation_images(self.folder, record["step"], teacher=teacher)
            with self._tracking():
                self.tracker.log(scores, record["step"])
                self.tracker.log_images(images, record["step"])

    def process_image(self, step: int) -> None:
        """Give the tracker process_vis/latest.png, which is of update `step` (1 for the first)."""
        if self.active and self.tracker:
            images = trackers.process_image(self.folder)
            with self._tracking():
                self.tracker.log_images(images, step)

    def _write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close(failed=error is not None)
        except OSError:
            if error is None:  # else the disk ended the run, and that error is already reported
                raise

    @contextmanager
    def _tracking(self) -> Iterator[None]:
        """If the tracker fails, log its error and continue without it."""
        try:
            yield
        except Exception as error:  # whatever a tracker's network, disk or account raises
            self.tracker = None
            logger.warning("the tracker failed, and the run continues without it: %s", trackers.describe_failure(error))

    def _close(self, *, failed: bool) -> None:
        self.bar.close()
        if self.active:
            os.fsync(self.file.fileno())
            self.file.close()
            if self.tracker:
                with self._tracking():
                    self.tracker.close(failed=failed)


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, float)}


def _listed(metrics: dict[str, float]) -> str:
    return " ".join(f"{name}={value:.5g}" for name, value in metrics.items())


def _drop_later_steps(path: Path, last_step: int) -> tuple[list[dict[str, Any]], int]:
    """Delete the records of steps after `last_step`; return the others, and the last step before the deletion."""
    records = read_records(path)
    kept = [record for record in records if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept, max((record["step"] for record in records), default=0)
