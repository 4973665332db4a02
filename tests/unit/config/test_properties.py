"""Properties that hold for any input, searched by hypothesis: the prompt reader, the configuration, image names."""

import string
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dpdmd.config import Config, from_dict, parse, read_yaml, write_yaml
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import NORMALIZERS
from dpdmd.config.parser import _groups, _value_type
from dpdmd.data.prompts import global_samples, prompts_of_step, read_prompts
from dpdmd.sampling.image_folder import file_name

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
def test_any_bytes_are_read_or_refused_in_one_line(content):
    try:
        found = read(content)
    except ValueError as error:
        assert str(error).startswith("--prompt_txt ") and "\n" not in str(error).rstrip("\n")
    else:
        assert found and all(prompt and prompt == prompt.strip() and "\n" not in prompt for prompt in found)


@few
@given(st.integers(1, 30), st.integers(0, 5), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 40))
def test_an_epoch_visits_every_prompt_once_over_all_ranks(num_prompts, seed, share, processes, first):
    """Batches that fill whole epochs hold every prompt equally often, however the ranks share them."""
    prompts, size = [str(index) for index in range(num_prompts)], share * processes
    seen = [
        prompt
        for step in range(first * num_prompts, (first + 1) * num_prompts)
        for rank in range(processes)
        for prompt in prompts_of_step(prompts, seed, step, size, global_samples(size, processes, rank))
    ]
    assert sorted(seen) == sorted(prompts * size)


VALUES = {
    int: st.integers(1, 10**6),
    float: st.floats(1e-9, 1e6, allow_nan=False),
    bool: st.booleans(),
    str: st.text(string.ascii_letters + string.digits + " _-./:#'\"äλ", min_size=1, max_size=20),
}


@st.composite
def configurations(draw) -> Config:
    """Any configuration of the right types, whether or not `validate` would take it."""
    config = Config()
    for name, (kind, items) in _groups().items():
        for field, item in items.items():
            wanted, optional = _value_type(kind, field)
            choices = item.metadata["choices"]
            values = st.sampled_from(choices) if choices else VALUES[wanted]
            setattr(getattr(config, name), field, draw(st.none() | values if optional else values))
    return config


@few
@given(configurations())
def test_a_configuration_survives_its_file(config):
    with tempfile.TemporaryDirectory() as folder:
        write_yaml(config, Path(folder) / "config.yaml")
        assert read_yaml(Path(folder) / "config.yaml") == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(config.as_dict())), "there") == config
    assert config.differences(config) == []


@few
@given(
    st.integers(1, 100),
    st.floats(1e-8, 10, allow_nan=False),
    st.sampled_from(list(METHODS)),
    st.sampled_from(NORMALIZERS),
    st.booleans(),
)
def test_flags_and_file_give_the_same_configuration(steps, rate, method, normalizer, bf16):
    """A flag's text and a YAML value are read alike."""
    flags = ["--max_steps", str(steps), "--lr_student", str(rate), "--method", method]
    flags += ["--perceptual_path", "weights"] if method == "dmd_lpips" else []
    flags += ["--dmd_normalizer", normalizer, "--bf16" if bf16 else "--no-bf16"]
    with tempfile.TemporaryDirectory() as folder:
        write_yaml(parse(flags), Path(folder) / "config.yaml")
        assert parse(["--config", str(Path(folder) / "config.yaml")]) == parse(flags)


@few
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4)), min_size=2, max_size=2, unique=True))
def test_no_two_images_share_a_name(keys):
    assert len({file_name(key) for key in keys}) == 2
