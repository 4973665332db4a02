"""Image sizes as people write them: WIDTHxHEIGHT, and lists of sizes with weights. Imports nothing heavy."""

import math
import re
from typing import NamedTuple

MAX_PIXELS = 2**16  # per side
MAX_SIZES = 64  # of one run
_SIZE = re.compile(r"([0-9]{1,10})x([0-9]{1,10})")
_SHOWN = 60  # letters of a value in a message


class ImageSize(NamedTuple):
    """Height and width of an image in pixels, in torch's order. As text it is WIDTHxHEIGHT, in people's order."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str, flag: str) -> "ImageSize":
        """Read WIDTHxHEIGHT, such as 832x1216 for an image that is higher than wide.

        Raises:
            ValueError: another form, or a side out of range; the message names `flag`.
        """
        match = _SIZE.fullmatch(text)
        if not match:
            raise ValueError(f"{flag} {text[:_SHOWN]!r}: must be WIDTHxHEIGHT in pixels, such as 832x1216")
        width, height = map(int, match.groups())
        if not all(1 <= side <= MAX_PIXELS for side in (width, height)):
            raise ValueError(f"{flag} {text}: a side must be 1 to {MAX_PIXELS} pixels")
        return cls(height, width)


def parse_sizes(text: str) -> dict[ImageSize, float]:
    """Read the value of `--sizes`, WIDTHxHEIGHT[:WEIGHT],..., as size -> weight, in the order given.

    Raises:
        ValueError: another form, a size twice, too many sizes, or a weight that is not a finite number above 0.
    """
    found: dict[ImageSize, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        size = ImageSize.parse(name.strip(), "--sizes")
        if size in found:
            raise ValueError(f"--sizes: {size} is given twice; give it once, with a weight such as {size}:2")
        found[size] = _parse_weight(weight, size) if ":" in part else 1.0
    if len(found) > MAX_SIZES:
        raise ValueError(f"--sizes: {len(found)} sizes; give at most {MAX_SIZES}")
    return found


def _parse_weight(text: str, size: ImageSize) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < 1e9:
        raise ValueError(f"--sizes: the weight of {size} is {text[:_SHOWN]!r}; must be a number above 0, below 1e9")
    return weight


def format_sizes(sizes: dict[ImageSize, float]) -> str:
    """Return the one text of a value of `--sizes`, so that equal values are equal texts."""
    return ",".join(
        f"{size}" + ("" if weight == 1 else f":{weight!r}".removesuffix(".0")) for size, weight in sizes.items()
    )
