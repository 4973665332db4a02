"""Properties of configurations that hold for any values, searched by hypothesis."""

import string
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dpdmd.config import Config, from_dict, parse, read_yaml, write_yaml
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import NORMALIZERS
from dpdmd.config.schema import option_groups, value_type
from dpdmd.utils.paths import LATEST

few = settings(max_examples=60, deadline=None)


VALUES = {
    int: st.integers(1, 10**6),
    float: st.floats(1e-9, 1e6, allow_nan=False),
    bool: st.booleans(),
    str: st.text(string.ascii_letters + string.digits + " _-./:#'\"äλ", min_size=1, max_size=20),
}


@st.composite
def configurations(draw) -> Config:
    """Return any configuration of the right types, also if `validate` would reject it."""
    config = Config()
    for name, (kind, items) in option_groups().items():
        for field, item in items.items():
            wanted, optional = value_type(kind, field)
            choices = item.metadata["choices"]
            values = st.sampled_from(choices) if choices else VALUES[wanted]
            setattr(getattr(config, name), field, draw(st.none() | values if optional else values))
    return config


@few
@given(configurations())
def test_a_configuration_survives_its_file(config):
    with tempfile.TemporaryDirectory() as folder:
        write_yaml(config, Path(folder) / "config.yaml")
        kept = replace(config, run=replace(config.run))
        if kept.run.resume_from_checkpoint != LATEST:  # where this run started is a comment
            kept.run.resume_from_checkpoint = None
        assert read_yaml(Path(folder) / "config.yaml") == kept
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
    """Flags and YAML values are converted in the same way."""
    flags = ["--max_steps", str(steps), "--lr_student", str(rate), "--method", method]
    flags += ["--perceptual_path", "weights"] if method == "dmd_lpips" else []
    flags += ["--dmd_normalizer", normalizer, "--bf16" if bf16 else "--no-bf16"]
    with tempfile.TemporaryDirectory() as folder:
        write_yaml(parse(flags), Path(folder) / "config.yaml")
        assert parse(["--config", str(Path(folder) / "config.yaml")]) == parse(flags)
