"""Our schedule from a folder's scheduler_config.json; refused where our own arithmetic would not be the scheduler's."""

from pathlib import Path
from typing import Any

from dpdmd.utils.text_files import read_json


def read_scheduler_config(folder: Path, scheduler: str) -> tuple[Path, dict[str, Any]]:
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    if config.get("_class_name") != scheduler:
        raise ValueError(f"{path} is of a {config.get('_class_name')}, but a {scheduler} is needed")
    return path, config
