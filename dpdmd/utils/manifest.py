"""The manifest of a folder of files: what each must hold, so that a truncated or altered one is told, not loaded.

FOLDER/manifest.json: {"files": {name: {"bytes", "sha256"}}, ..., "sha256" of all that stands before it}.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dpdmd.utils.text_files import read_json

MANIFEST = "manifest.json"
NUM_THREADS = 4  # hashing leaves Python's lock, and checkpoints are a few large files


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """List every file below `folder` (links are left out: they are another folder's), with `about` beside the list.

    Raises:
        OSError: something cannot be read or written.
    """
    own = folder / MANIFEST
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path != own)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = list(pool.map(_digest, paths))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    content = {**about, "files": files}
    text = json.dumps({**content, "sha256": _own_digest(content)}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, once it is known to be as it was written.

    Raises:
        ValueError: missing, unreadable or altered.
    """
    content = read_json(folder / MANIFEST)
    own = content.pop("sha256", None)
    if not isinstance(content.get("files"), dict) or own != _own_digest(content):
        raise ValueError(f"{folder / MANIFEST} was altered")
    return content


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Check against the manifest that every file is there in full length.

    Raises:
        ValueError: names the first file that is missing or truncated.
    """
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise ValueError(f"{path} has {size} bytes where {MANIFEST} promises {entry['bytes']}")


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Check sizes, then contents, of all files against the manifest.

    Raises:
        ValueError: names the first file that is missing, truncated or altered.
    """
    check_sizes(folder, manifest)
    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            digests = list(pool.map(lambda name: _digest(folder / name), manifest["files"]))
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
    for digest, (name, entry) in zip(digests, manifest["files"].items(), strict=True):
        if digest != entry["sha256"]:
            raise ValueError(f"{folder / name} was altered: its checksum is not the manifest's")
