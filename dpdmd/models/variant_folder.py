"""A folder of links in which a variant's weights have plain names, so that all other code reads plain names only."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dpdmd.utils.atomic_files import delete_on_failure
from dpdmd.utils.folders import delete_tree
from dpdmd.utils.user_cache import user_cache


def link_variant(folder: Path, files: Mapping[str, str], variant: str) -> Path:
    """Return a folder of links to `files` (name there -> name in `folder`). The same call returns the same folder.

    It lies in $XDG_CACHE_HOME/dpdmd/variants: `folder` may be read-only, or a snapshot in the Hub's cache.

    Raises:
        ValueError: the user has no home, and so no cache.
        OSError: the folder of links cannot be written.
    """
    source = folder.resolve()
    key = hashlib.sha256(repr((str(source), variant, sorted(files.items()))).encode()).hexdigest()[:16]
    try:
        target = user_cache() / "variants" / f"{source.name}-{variant}-{key}"
    except RuntimeError as error:
        raise ValueError(f"--variant {variant}: has no place for its links ({error}); set XDG_CACHE_HOME") from None
    if all(os.path.exists(target / name) for name in files):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with delete_on_failure(Path(tempfile.mkdtemp(dir=target.parent, prefix=".new"))) as new:
        for name, original in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).symlink_to(source / original)
        if target.is_dir() and any(not os.path.lexists(target / name) for name in files):  # someone deleted links
            with suppress(OSError):  # another process was faster
                broken = new.with_name(f"{new.name}.broken")
                os.replace(target, broken)
                delete_tree(broken)
        try:
            os.replace(new, target)
        except OSError:
            if not all(os.path.exists(target / name) for name in files):  # else another process was faster
                raise
    return target
