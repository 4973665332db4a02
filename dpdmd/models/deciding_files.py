"""The files of a model's folder that decide its results: what the libraries load, and what an export copies."""

from collections.abc import Iterable
from pathlib import Path

from dpdmd.models.weight_files import DIFFUSERS_STEM, SETTINGS_FILES, TRANSFORMERS_STEM
from dpdmd.utils.text_files import read_json

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def deciding_files(path: Path) -> list[Path]:
    """Return the path itself if it is a file, else the settings in the folder and the weights that are loaded.

    Weights in another format or precision beside them are left out. They may be as large again.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file())
    weights = set()
    for stem in (TRANSFORMERS_STEM, DIFFUSERS_STEM):
        weights |= {f"{stem}.safetensors", *_shards(path / f"{stem}.safetensors.index.json")}
    if not any(file.name in weights for file in files):
        weights |= {file.name for file in files if file.suffix in _WEIGHTS}
    return [file for file in files if file.suffix in SETTINGS_FILES or file.name in weights]


def _shards(index: Path) -> Iterable[str]:
    if not index.is_file():
        return ()
    placed = read_json(index).get("weight_map")
    return set(placed.values()) if isinstance(placed, dict) else ()
