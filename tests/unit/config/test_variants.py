"""Models of a family with defaults of their own, found by the teacher's small files."""

import pytest

from dpdmd import config
from dpdmd.config.presets import PRESETS
from dpdmd.config.variants import SD3_MEDIUM, SD35_LARGE, SDXL_V, VARIANTS, find_variant
from dpdmd.models.registry import LAYOUTS, sampling_defaults


@pytest.mark.parametrize(
    ("model", "family", "name", "steps", "scale", "k_anchor"),
    [
        ("sd35", "sd35", None, 30, 3.5, 5),
        ("sd35_large", "sd35", SD35_LARGE, 28, 3.5, 5),
        ("sd3_medium", "sd35", SD3_MEDIUM, 28, 7.0, 5),
        ("sdxl", "sdxl", None, 50, 8.0, 8),
        ("sdxl_v", "sdxl", SDXL_V, 28, 5.0, 5),
        ("zimage", "zimage", None, 50, 5.0, 8),
        ("qwen_image", "qwen_image", None, 50, 4.0, 8),
        ("lumina2", "lumina2", None, 30, 4.0, 5),
        ("flux2_klein", "flux2_klein", None, 50, 4.0, 8),
    ],
)
def test_a_teacher_has_the_defaults_of_its_model(tiny_folder, tmp_path, model, family, name, steps, scale, k_anchor):
    """Files and flags still override them; a LoRA or pipeline without dpdmd.json samples with them."""
    folder = tiny_folder(model)
    found = find_variant(family, folder)
    assert (found and found.name) == name
    method = config.parse(["--family", family, "--teacher_id", str(folder)]).method
    assert (method.teacher_infer_steps, method.teacher_guidance_scale, method.k_anchor) == (steps, scale, k_anchor)
    (tmp_path / "c.yaml").write_text(f"family: {family}\nteacher_id: {folder}\nteacher_infer_steps: 9\n")
    method = config.parse(["--config", str(tmp_path / "c.yaml"), "--teacher_guidance_scale", "2"]).method
    assert (method.teacher_infer_steps, method.teacher_guidance_scale, method.k_anchor) == (9, 2.0, k_anchor)
    if not (folder / "dpdmd.json").exists():
        own = sampling_defaults(folder)
        assert (own.steps, own.guidance_scale) == (steps, scale)


@pytest.mark.parametrize(("model", "preset"), [("sd3_medium", []), ("sd35_large", ["--preset", "24gb"])])
def test_an_alias_of_the_teacher_gives_the_same_defaults_and_preset(tiny_folder, model, preset):
    chosen = config.parse(["--pretrained_model_name_or_path", str(tiny_folder(model)), *preset])
    assert chosen == config.parse(["--teacher_id", str(tiny_folder(model)), *preset])


def test_files_that_cannot_be_read_are_left_to_the_checks_of_the_folder(tmp_path):
    assert find_variant("sd35", tmp_path / "missing") is None
    for content in ("", "[]", "{"):
        (tmp_path / "transformer").mkdir(exist_ok=True)
        (tmp_path / "transformer" / "config.json").write_text(content)
        assert find_variant("sd35", tmp_path) is None
    assert find_variant("another", tmp_path) is None
    assert config.parse(["--teacher_id", str(tmp_path)]).method == config.Config().method


def test_a_larger_model_takes_the_flags_of_a_smaller_preset(tiny_folder):
    large = config.parse(["--teacher_id", str(tiny_folder("sd35_large")), "--preset", "48gb"])
    smaller = config.parse(["--teacher_id", str(tiny_folder("sd35_large")), *flags_of("24gb")])
    assert large == smaller and large.optim.batch_size == 4 and large.eval.offload_scorers


def flags_of(preset: str) -> list[str]:
    return [
        part
        for name, value in PRESETS[preset].values.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_of_a_family_and_sets_known_flags(variant):
    assert variant.family in LAYOUTS
    chosen = config.from_dict(dict(variant.values), variant.name)
    assert all(getattr(chosen.method, name) == value for name, value in variant.values.items())
