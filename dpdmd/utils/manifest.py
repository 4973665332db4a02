"""The manifest of a folder: size and checksum of each file, so that truncated or altered files are not loaded.

FOLDER/manifest.json: {"files": {name: {"bytes", "sha256"}}, ..., "sha256": checksum of the content before it}.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dpdmd.utils.file_digests import sha256_of_files
from dpdmd.utils.text_files import read_json

MANIFEST = "manifest.json"


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest of all files below `folder`, without links.

    Args:
        about: further entries of the manifest.

    Raises:
        OSError: a file cannot be read or written.
    """
    own = folder / MANIFEST
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path != own)
    digests = sha256_of_files(paths, read_all=True)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    content = {**about, "files": files}
    text = json.dumps({**content, "sha256": _own_digest(content)}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and check its own checksum.

    Raises:
        ValueError: it is missing, unreadable or altered.
    """
    content = read_json(folder / MANIFEST)
    own = content.pop("sha256", None)
    if not isinstance(content.get("files"), dict) or own != _own_digest(content):
        raise ValueError(f"{folder / MANIFEST} was altered")
    return content


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that every file of the manifest is there in its full length.

    Raises:
        ValueError: a file is missing or truncated; the message names the first.
    """
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise ValueError(f"{path} has {size} bytes where {MANIFEST} promises {entry['bytes']}")


def is_whole(folder: Path) -> bool:
    """Return whether a folder has a manifest and all its files in full length. Checksums are not compared."""
    try:
        check_sizes(folder, read_manifest(folder))
    except (ValueError, OSError):
        return False
    return True


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare the sizes, then the checksums, of all files with the manifest.

    Raises:
        ValueError: a file is missing, truncated or altered; the message names the first.
    """
    check_sizes(folder, manifest)
    try:
        digests = sha256_of_files([folder / name for name in manifest["files"]], read_all=True)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
    for digest, (name, entry) in zip(digests, manifest["files"].items(), strict=True):
        if digest != entry["sha256"]:
            raise ValueError(f"{folder / name} was altered: its checksum is not the manifest's")
