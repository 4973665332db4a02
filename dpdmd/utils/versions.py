"""Versions of the libraries that results depend on."""

import platform
from importlib import metadata

from dpdmd import __version__


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries."""
    packages = ("torch", "diffusers", "transformers", "accelerate")
    return {
        "dpdmd": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def library_versions() -> dict[str, str]:
    """Return the versions that decide the bits of a model's results."""
    packages = ("torch", "diffusers", "transformers", "tokenizers")
    return {"dpdmd": __version__, **{name: metadata.version(name) for name in packages}}
