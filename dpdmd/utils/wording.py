"""Words in messages."""


def counted(count: int, noun: str, plural: str = "s") -> str:
    """Return a count with its noun, such as "1 step" or "2,000 steps"; `plural` is the noun's ending."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"
