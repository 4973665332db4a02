"""Properties of prompts that hold for any input, searched by hypothesis."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dpdmd.data.prompt_files import read_prompts
from dpdmd.data.prompts import global_samples, prompts_of_step

# What may stand in a line: anything but line ends, zero bytes, and halves of surrogate pairs (not UTF-8).
TEXT = st.text(
    st.characters(blacklist_characters="\n\r\0\ufeff", blacklist_categories=("Cs",)), min_size=1, max_size=60
)
PROMPTS = TEXT.map(str.strip).filter(
    lambda line: (
        any(letter.isprintable() and not letter.isspace() for letter in line)
        and not line.split(" ")[0].isdigit()
        and line[0] not in "[{"
    )
)
few = settings(max_examples=60, deadline=None)


def read(content: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        path.write_bytes(content)
        return read_prompts(path)


@few
@given(
    st.lists(PROMPTS, min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_prompts_come_back_whatever_the_form_of_the_file(prompts, end, mark, numbered, blank):
    """Byte-order mark, CRLF, blank lines and a leading number change nothing."""
    lines = [f"{index} - {prompt}" if numbered else prompt for index, prompt in enumerate(prompts)]
    text = (end * (blank + 1)).join(lines) + end * blank
    assert read(text.encode("utf-8-sig" if mark else "utf-8")) == prompts


@few
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_are_an_error_of_one_line(content):
    try:
        found = read(content)
    except ValueError as error:
        assert str(error).startswith("--prompt_txt ") and "\n" not in str(error).rstrip("\n")
    else:
        assert found and all(prompt and prompt == prompt.strip() and "\n" not in prompt for prompt in found)


@few
@given(st.integers(1, 30), st.integers(0, 5), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 40))
def test_an_epoch_visits_every_prompt_once_over_all_ranks(num_prompts, seed, share, processes, first):
    """Batches that fill whole epochs hold every prompt equally often, for any number of ranks."""
    prompts, size = [str(index) for index in range(num_prompts)], share * processes
    seen = [
        prompt
        for step in range(first * num_prompts, (first + 1) * num_prompts)
        for rank in range(processes)
        for prompt in prompts_of_step(prompts, seed, step, size, global_samples(size, processes, rank))
    ]
    assert sorted(seen) == sorted(prompts * size)
