"""The run folder: the only maker of output paths.

RUN/config.yaml  metrics.jsonl  log/log.txt  ckpts/step_000600/{student,state}  ckpts/latest  process_vis/  ...
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dpdmd.config import RunConfig

DEFAULT_RUN_DIR = "outputs/dpdmd"
LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run goes."""

    root: Path
    log: Path
    ckpts: Path
    eval_images: Path
    process_vis: Path
    div_vis: Path

    @classmethod
    def from_config(cls, run: RunConfig) -> "RunFolder":
        """Every path from `run_dir`, or as given; without `run_dir` the root is where the given ones lie."""
        given = [run.ckpt_dir, run.log_path, run.eval_dir, run.process_folder_name, run.diversity_folder_name]
        first = next((path for path in given if path), None)
        root = Path(run.run_dir) if run.run_dir else Path(first).parent if first else Path(DEFAULT_RUN_DIR)
        return cls(
            root=root,
            log=Path(run.log_path or root / "log"),
            ckpts=Path(run.ckpt_dir or root / "ckpts"),
            eval_images=Path(run.eval_dir or root / "eval_images"),
            process_vis=Path(run.process_folder_name or root / "process_vis"),
            div_vis=Path(run.diversity_folder_name or root / "div_vis"),
        )

    @classmethod
    def of(cls, root: Path) -> "RunFolder":
        """The run at `root`, all paths derived."""
        return cls.from_config(RunConfig(run_dir=str(root)))

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.log / "log.txt"

    def checkpoint(self, step: int) -> Path:
        return self.ckpts / f"step_{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first; half-written ones have another name."""
        if not self.ckpts.is_dir():
            return []
        found = [path for path in self.ckpts.glob("step_*") if path.name[5:].isdigit() and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def latest(self) -> Path | None:
        """The newest finished checkpoint: what `latest` points to, else the last by number."""
        link = self.ckpts / LATEST
        if link.is_dir():
            return self.ckpts / os.readlink(link) if link.is_symlink() else link
        checkpoints = self.checkpoints()
        return checkpoints[-1] if checkpoints else None

    def scattered(self) -> list[Path]:
        """Output paths that do not lie under the root."""
        root = self.root.absolute()
        paths = (self.log, self.ckpts, self.eval_images, self.process_vis, self.div_vis)
        return [path for path in paths if not path.absolute().is_relative_to(root)]

    def is_used(self) -> bool:
        """Whether anything is here already, under the root or in a folder that was given by itself."""
        places = (self.root, self.log, self.ckpts, self.eval_images, self.process_vis, self.div_vis)
        return any(path.is_dir() and any(path.iterdir()) for path in places)

    def create(self) -> None:
        """Make the folders."""
        for path in (self.root, self.log, self.ckpts, self.eval_images, self.process_vis, self.div_vis):
            path.mkdir(parents=True, exist_ok=True)
