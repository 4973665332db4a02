"""SHA-256 of files. The digests of large files are kept per user, so that a model is read once and not at each start.

$XDG_CACHE_HOME/dpdmd/file_digests.json (default: ~/.cache) maps a file's device, inode, size and times to its digest.
A write changes the inode's change time (ctime), which programs cannot set, so the entry of an altered file is not found
again. Without a writable folder, files are read anew by each process.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.text_files import read_json, require_regular
from dpdmd.utils.user_cache import user_cache

NUM_THREADS = 4  # hashing releases the GIL, and a model has a few large files
MIN_BYTES = 2**20  # smaller files are read each time
MAX_ENTRIES = 4096  # about 500 kB
SETTLED_SECONDS = 2.0  # longer than the steps of any file system's clock

_entries: dict[str, str] = {}  # of this process, also if the user's file cannot be written


def sha256_of_files(paths: Sequence[Path], *, read_all: bool = False) -> list[str]:
    """Return the SHA-256 of each file, as `sha256sum` prints it.

    Args:
        read_all: read every byte, to find files that are damaged on disk, even if a digest is kept.

    Raises:
        OSError: a file cannot be read.
    """
    kept = {} if read_all else _entries | _read_kept()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(lambda path: _sha256(path, kept), paths))
    if new := {key: digest for key, digest in found if key and kept.get(key) != digest}:
        _entries.update(new)
        _keep(new)
    return [digest for _, digest in found]


def _sha256(path: Path, kept: dict[str, str]) -> tuple[str, str]:
    """Return the key under which the digest may be kept, or "", and the digest."""
    require_regular(path)
    with path.open("rb") as file:  # an open file has the current times on a network file system, too
        started, key = time.time(), _key(file.fileno())
        if key in kept:
            return key, kept[key]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = os.fstat(file.fileno())
        # A file that was changed just now could change again without a difference in its times.
        settled = _key(file.fileno()) == key and status.st_ctime < started - SETTLED_SECONDS
    return key if settled and status.st_size >= MIN_BYTES else "", digest


def _key(file: int) -> str:
    status = os.fstat(file)
    values = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, values))


def _kept_file() -> Path:
    return user_cache() / "file_digests.json"


def _read_kept() -> dict[str, str]:
    try:
        return {key: digest for key, digest in read_json(_kept_file()).items() if isinstance(digest, str)}
    except (ValueError, RuntimeError):  # missing, damaged, or no home
        return {}


def _keep(new: dict[str, str]) -> None:
    """Add entries to the user's file. If two processes write at once, one's entries are lost, and read again later."""
    entries = list((_read_kept() | new).items())[-MAX_ENTRIES:]
    with suppress(OSError, RuntimeError):
        write_text(_kept_file(), json.dumps(dict(entries), indent=0) + "\n")
