"""Model families: a new one is a file here, its layout in `layouts.py`, and a line in each of the two dicts."""

from dpdmd.models.base import Family


def family_class(name: str) -> type[Family]:
    """The class of a family; imported on demand, since diffusers takes seconds to import.

    Raises:
        ValueError: unknown name.
    """
    if name == "sd35":
        from dpdmd.models.sd35.family import SD35

        return SD35
    if name == "sdxl":
        from dpdmd.models.sdxl.family import SDXL

        return SDXL
    raise ValueError(f"unknown family {name!r} (known: sd35, sdxl)")
