"""`--preset`: each preset fits its device; files and flags override it."""

import re
from pathlib import Path

import pytest
import yaml

from dpdmd import config
from dpdmd.config.presets import FAMILIES, LARGER_MODELS, PRESETS
from dpdmd.config.variants import SD3_MEDIUM, SD35_LARGE, find_variant
from dpdmd.evaluation.in_loop_setup import EvalSetup, ImageSet
from dpdmd.models.hollow import write_hollow
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_estimate import estimate_memory
from dpdmd.training.memory_items import IMAGES, Topology

ROOT = Path(__file__).parents[3]
# PickScore 3.95, ImageReward 1.8, CLIP 1.7, DINOv2 0.35 GB in fp32, rounded up.
ALL_SCORERS, WITHOUT_PICKSCORE = 8_000_000_000, 4_050_000_000


@pytest.fixture(scope="module", params=["", SD35_LARGE, SD3_MEDIUM])
def model(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of the family sd35 without its weights."""
    folder = tmp_path_factory.mktemp("weights") / "sd35"
    write_hollow(LAYOUTS["sd35"], folder, request.param)
    return folder


def name_of(folder: Path) -> str | None:
    variant = find_variant("sd35", folder)
    return variant and variant.name


def evaluation(folder: Path, num_bytes: int) -> EvalSetup:
    """Return scorers of a given size, as one sparse file."""
    weights = folder / "weights.pt"
    with weights.open("wb") as file:
        file.truncate(num_bytes)
    return EvalSetup([ImageSet("set", ["a"], 9, ("imagereward",))], {"imagereward": {"ir_model_path": weights}}, "")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_its_device_beside_the_scorers(model, tmp_path, name):
    """5% of the device stay free for workspaces and fragmentation. A preset that is no fit for a model is an error."""
    preset = PRESETS[name]
    scored = evaluation(tmp_path, WITHOUT_PICKSCORE if name in ("12gb", "16gb") else ALL_SCORERS)
    command = ["--teacher_id", str(model), "--preset", name]
    if LARGER_MODELS[SD35_LARGE].get(name, {}) is None and name_of(model) == SD35_LARGE:
        with pytest.raises(ValueError, match="take --preset 24gb or 48gb or 80gb or 8gpu"):
            config.parse(command)
        return
    chosen = config.parse(command)
    planned = estimate_memory(chosen, scored, Topology(preset.devices, sharded=preset.devices > 1))
    assert planned.bytes_in_phase(IMAGES) > scored.paths["imagereward"]["ir_model_path"].stat().st_size
    assert planned.total < 0.95 * preset.gigabytes * 1e9, planned.table()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_the_papers_global_batch(name):
    optim = config.parse(["--preset", name]).optim
    assert optim.batch_size * optim.grad_accum * PRESETS[name].devices == 4 * 8
    assert optim.bf16 and optim.gradient_checkpointing


def test_defaults_then_preset_then_file_then_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batch_size: 3\ngrad_accum: 5\n")
    chosen = config.parse(["--preset", "16gb", "--config", str(path), "--grad_accum", "7"])
    assert (chosen.optim.batch_size, chosen.optim.grad_accum, chosen.model.lora_rank) == (3, 7, 64)
    assert chosen.method == config.Config().method
    config.write_yaml(chosen, tmp_path / "resolved.yaml")
    assert config.parse(["--config", str(tmp_path / "resolved.yaml")]) == chosen


@pytest.mark.parametrize("place", ["flag", "file"])
def test_a_family_has_defaults_of_its_own_under_all_that_is_given(tmp_path, place):
    """SDXL's defaults are the settings of scripts/configs/sdxl.yaml."""
    path = tmp_path / "c.yaml"
    path.write_text("family: sdxl\nk_anchor: 6\n" if place == "file" else "k_anchor: 6\n")
    given = ["--config", str(path), *(["--family", "sdxl"] if place == "flag" else [])]
    chosen = config.parse([*given, "--preset", "16gb", "--teacher_guidance_scale", "5"])
    method = chosen.method
    assert (method.teacher_infer_steps, method.student_sigmas) == (50, "trailing")
    assert (method.k_anchor, method.teacher_guidance_scale, chosen.model.lora_rank) == (6, 5.0, 64)
    assert chosen.model.student_id == chosen.model.teacher_id == "weights/stabilityai/stable-diffusion-xl-base-1.0"
    config.write_yaml(chosen, tmp_path / "resolved.yaml")
    assert config.parse(["--config", str(tmp_path / "resolved.yaml")]) == chosen
    settings = yaml.safe_load((ROOT / "scripts" / "configs" / "sdxl.yaml").read_text())
    spelt = {name: value for section in settings.values() for name, value in section.items()}
    assert FAMILIES["sdxl"].items() <= spelt.items()


def test_help_says_what_each_sets():
    text = re.sub(r"\s+", " ", config.build_parser().format_help())
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary()}" in text


def test_a_file_that_replaces_values_of_a_preset_is_named(tmp_path):
    """`--preset 48gb` beside the paper's file trains a LoRA at a tenth of its learning rate. A flag is meant."""
    file = tmp_path / "mine.yaml"
    file.write_text("lr_student: 1e-5\nbatch_size: 4\nbf16: true\n")
    command = ["--preset", "48gb", "--config", str(file)]
    assert config.parse(command).outvoted == {"lr_student": 1e-4, "batch_size": 8}
    assert config.parse([*command, "--batch_size", "2"]).outvoted == {"lr_student": 1e-4}
    assert not config.parse(["--preset", "48gb"]).outvoted and not config.parse(["--config", str(file)]).outvoted
