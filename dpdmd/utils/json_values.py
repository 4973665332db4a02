"""Values of JSON files, which may be anything. Imports nothing heavy."""

import math
from typing import Any


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold; a whole number in JSON may have any length."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
