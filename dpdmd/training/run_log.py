"""The record of a run: metrics.jsonl (every step), log.txt, tracker and progress bar. Rank 0 only."""

import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from dpdmd.config import Config
from dpdmd.evaluation import seed_grids
from dpdmd.run_folder import EVAL_TURN, RunFolder, read_records
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.logging import logger
from dpdmd.utils.versions import versions


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in GB: allocated on the GPU, or on a CPU the resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return the content of environment.json: device, processes, system, versions."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
    return {
        "device": name,
        "processes": accelerator.num_processes,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


class RunLog:
    """The record of one run. On ranks other than 0 every method does nothing.

    A resumed run first drops the records after its checkpoint, since it repeats those steps.
    """

    def __init__(self, folder: RunFolder, config: Config, accelerator: Accelerator, first_step: int, total_steps: int):
        self.accelerator = accelerator
        self.every = config.run.log_every
        self.active = accelerator.is_main_process
        self.bar = tqdm(
            total=total_steps, initial=first_step, desc=config.method.method, disable=not self.active, unit="step"
        )
        self.evaluations: list[dict[str, Any]] = []  # including those before a resume
        if not self.active:
            return
        if folder.metrics.exists():
            kept = _drop_later_steps(folder.metrics, first_step)
            self.evaluations = [record for record in kept if record["turn"] == EVAL_TURN]
        seed_grids.drop_later(folder.seed_grids, first_step)
        self.file = folder.metrics.open("a", encoding="utf-8")
        self.tracking = config.run.report_to != "none"
        flat = {name: value for group in config.as_dict().values() for name, value in group.items()}
        self._track(accelerator.init_trackers, "dpdmd", config={k: v if v is not None else "" for k, v in flat.items()})

    def step(self, record: dict[str, Any]) -> None:
        """Record one update: `record` has `step` (1 for the first), `turn` (the update's name), and metrics."""
        if not self.active:
            return
        self._write(record)
        metrics = {name: value for name, value in record.items() if isinstance(value, float)}
        self.bar.update()
        self.bar.set_postfix(
            {name: f"{value:.4g}" for name, value in metrics.items() if name.startswith("loss")}, refresh=False
        )
        named = {f"{record['turn']}/{name}": value for name, value in metrics.items()}
        self._track(self.accelerator.log, named, step=record["step"])
        if record["step"] % self.every == 0:
            logger.info(
                "step %d %s %s", record["step"], record["turn"], " ".join(f"{k}={v:.5g}" for k, v in metrics.items())
            )

    def evaluation(self, record: dict[str, Any], table: str) -> None:
        """Record one evaluation: `record` has `step`, `turn`, and scores whose names begin with eval/ or eval_ema/."""
        if not self.active:
            return
        self._write(record)
        self.evaluations.append(record)
        logger.info("%s", table)
        if self.bar.n == self.bar.initial:
            self.bar.unpause()  # else the evaluation would count into the first step's time
        scores = {name: value for name, value in record.items() if name.startswith("eval") and value is not None}
        self._track(self.accelerator.log, scores, step=record["step"])

    def _write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close()
        except OSError:
            if error is None:  # else the disk ended the run, and that error is already reported
                raise

    def _track(self, call: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Call the tracker; if it fails, the run continues without it."""
        if not self.tracking:
            return
        try:
            call(*arguments, **options)
        except Exception as error:  # whatever a tracker's network, disk or account raises
            self.tracking = False
            logger.warning("the tracker failed, and the run continues without it: %s: %s", type(error).__name__, error)

    def _close(self) -> None:
        self.bar.close()
        if self.active:
            os.fsync(self.file.fileno())
            self.file.close()
            for tracker in self.accelerator.trackers:  # end_training would also leave the other ranks
                self._track(tracker.finish)


def _drop_later_steps(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Delete the records of steps after `last_step`; return the others."""
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
