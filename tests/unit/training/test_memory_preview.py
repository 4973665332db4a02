"""`dpdmd.doctor --memory`: the estimate of a run, also before its weights are downloaded."""

import pytest

from dpdmd import config
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import Topology
from dpdmd.training.memory_preview import preview_memory


@pytest.mark.parametrize("flags", [("--preset", "16gb"), ("--lora_rank", "8", "--bf16"), ("--no_t5",)], ids=str)
def test_a_missing_teacher_has_the_shapes_of_the_official_model(medium, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)  # no weights here
    topology = Topology(8, sharded=True)
    absent, source = preview_memory(config.parse(flags), topology)
    there, path = preview_memory(config.parse([*flags, "--teacher_id", str(medium)]), topology)
    assert absent == there and path == str(medium)
    assert LAYOUTS["sd35"].repository in source and not list(tmp_path.iterdir())


def test_another_model_of_a_family_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    large = "stabilityai/stable-diffusion-3.5-large"
    memory, source = preview_memory(config.parse(["--teacher_id", large, "--preset", "48gb"]), Topology())
    whole = next(item for item in memory.items if item.name.startswith("teacher"))
    assert whole.bytes == 2 * 8_146_280_768 and large in source
    with pytest.raises(ValueError, match="--teacher_id weights/mine: no such folder"):
        preview_memory(config.parse(["--teacher_id", "weights/mine"]), Topology())
