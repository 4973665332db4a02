"""Prompt files, and the prompts of each step: a pure function of (seed, step, sample), so a resume needs no state."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpdmd.utils.rng import numpy_generator
from dpdmd.utils.text_files import check_prompt_length, read_text

Item = TypeVar("Item")
_NUMBERING = re.compile(r"^\d+ -(?: |$)")


def read_prompts(path: Path, flag: str = "--prompt_txt") -> list[str]:
    """Read the prompts of a text file, one per line, in file order.

    The file is UTF-8, with or without a byte-order mark, with LF or CRLF line ends. Blank lines and lines of invisible
    characters are skipped. A leading number such as "12 - " is removed. Only line ends separate prompts: characters
    such as U+2028 are part of a prompt.

    Raises:
        ValueError: missing, unreadable, not UTF-8, JSON, without any prompt, or with a line of more than
            MAX_PROMPT_LETTERS; the message names `flag` and the file.
    """
    try:
        text = read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{flag} {path}: line {line} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(
            f"{flag} {path}: cannot be read ({error.strerror}); give a text file, one prompt per line"
        ) from None
    if "\0" in text:
        raise ValueError(f"{flag} {path}: holds zero bytes; give a text file, one prompt per line")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        check_prompt_length(line, f"{flag} {path}: line {number}")
    lines = [_NUMBERING.sub("", line.strip()).strip() for line in lines]
    lines = [line for line in lines if any(letter.isprintable() and not letter.isspace() for letter in line)]
    if not lines:
        raise ValueError(f"{flag} {path}: no prompt in it; give a text file, one prompt per line")
    if _is_json(lines[0]) or _is_json(text):
        raise ValueError(f"{flag} {path}: is JSON; give a text file, one prompt per line")
    return lines


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON list or object. A text that does not begin like one is not parsed."""
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def fingerprint(prompts: Sequence[str]) -> str:
    """Return a digest of a list of prompts."""
    return hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=2)  # a batch may contain the end of one epoch and the start of the next
def epoch_order(num_prompts: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled order of the prompts in one epoch."""
    return numpy_generator(seed, "prompt order", epoch).permutation(num_prompts)


def global_samples(global_batch_size: int, num_processes: int, rank: int) -> range:
    """Return the samples of a global batch that a process computes: one contiguous share.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
    """
    if global_batch_size % num_processes:
        raise ValueError(f"a global batch of {global_batch_size} does not divide over {num_processes} processes")
    share = global_batch_size // num_processes
    return range(rank * share, (rank + 1) * share)


def prompts_of_step(
    prompts: Sequence[Item], seed: int, step: int, global_batch_size: int, samples: Sequence[int]
) -> list[Item]:
    """Return the prompts of samples of a step's global batch. Each epoch uses every prompt once, in a new order."""
    places = [step * global_batch_size + sample for sample in samples]
    return [prompts[epoch_order(len(prompts), seed, place // len(prompts))[place % len(prompts)]] for place in places]


def pool_prompts(prompts: Sequence[str], seed: int, size: int) -> list[str]:
    """Return the prompts of a pool of teacher samples: those that the first `size` samples of a run would have."""
    return prompts_of_step(prompts, seed, 0, size, range(size))
