"""Prompt files, and the prompts of a step: a pure function of (seed, step, sample), so a resumed run needs no state."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpdmd.utils.rng import numpy_generator
from dpdmd.utils.text_files import read_text

Item = TypeVar("Item")
_NUMBERING = re.compile(r"^\d+ -(?: |$)")


def read_prompts(path: Path, flag: str = "--prompt_txt") -> list[str]:
    """Prompts of a text file, one a line, in file order.

    UTF-8 with or without a byte-order mark, LF or CRLF; blank lines are left out, and so is a leading "12 - "
    numbering. Only line ends separate prompts: characters such as U+2028 are part of one. A line of nothing that shows,
    such as a zero-width space, is blank.

    Raises:
        ValueError: missing, unreadable, not UTF-8, JSON, or without any prompt; the message names `flag` and the file.
    """
    try:
        text = read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{flag} {path}: line {line} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(
            f"{flag} {path}: cannot be read ({error.strerror}); give a text file, one prompt a line"
        ) from None
    if "\0" in text:
        raise ValueError(f"{flag} {path}: holds zero bytes; give a text file, one prompt a line")
    lines = [_NUMBERING.sub("", line.strip()).strip() for line in text.split("\n")]
    lines = [line for line in lines if any(letter.isprintable() and not letter.isspace() for letter in line)]
    if not lines:
        raise ValueError(f"{flag} {path}: no prompt in it; give a text file, one prompt a line")
    if _is_json(lines[0]) or _is_json(text):
        raise ValueError(f"{flag} {path}: is JSON, whose lines are no prompts; give a text file, one prompt a line")
    return lines


def _is_json(text: str) -> bool:
    """Whether a text is a JSON list or object; one that no prompt begins as is not parsed."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def fingerprint(prompts: Sequence[str]) -> str:
    """Names a list of prompts, whichever file it came from."""
    return hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=2)
def _order(num_prompts: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffled order of one epoch; two are kept, since a batch may span the end of one."""
    return numpy_generator(seed, "prompt order", epoch).permutation(num_prompts)


def global_samples(global_batch_size: int, num_processes: int, rank: int) -> range:
    """Which samples of a global batch a process takes: one contiguous share.

    Raises:
        ValueError: the batch does not divide.
    """
    if global_batch_size % num_processes:
        raise ValueError(f"a global batch of {global_batch_size} does not divide over {num_processes} processes")
    share = global_batch_size // num_processes
    return range(rank * share, (rank + 1) * share)


def prompts_of_step(
    prompts: Sequence[Item], seed: int, step: int, global_batch_size: int, samples: Sequence[int]
) -> list[Item]:
    """Prompts of the given samples of one step's global batch; each epoch visits every prompt once, in a new order."""
    places = [step * global_batch_size + sample for sample in samples]
    return [prompts[_order(len(prompts), seed, place // len(prompts))[place % len(prompts)]] for place in places]
