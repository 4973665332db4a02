"""Versions of the libraries that a result depends on."""

import platform
from importlib import metadata

from dpdmd import __version__


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and its main libraries."""
    packages = ("torch", "diffusers", "transformers", "accelerate")
    return {
        "dpdmd": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
