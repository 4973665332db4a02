"""The folder of this package in the user's cache. Imports nothing heavy."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return $XDG_CACHE_HOME/dpdmd (default: ~/.cache/dpdmd), which may not exist.

    Raises:
        RuntimeError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "dpdmd"
