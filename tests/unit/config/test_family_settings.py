"""scripts/configs/FAMILY.yaml and scripts/accelerate_FAMILY_fsdp.yaml: every family has both, and they fit its code."""

from pathlib import Path

import pytest
import yaml

from dpdmd import config
from dpdmd.config.variants import find_variant
from dpdmd.models.registry import LAYOUTS, family_class

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.mark.parametrize(
    ("name", "family"),
    [("sd35_large", "sd35"), ("sd3_medium", "sd35"), ("sdxl_v", "sdxl"), ("flux2_klein_9b", "flux2_klein")],
)
def test_settings_are_the_variants_own_defaults(name, family):
    """A run by its script and one with `--teacher_id` alone have the same method, before a download too."""
    chosen = config.parse(["--config", str(SCRIPTS / "configs" / f"{name}.yaml")])
    variant = find_variant(family, Path(chosen.model.teacher_id))
    assert variant and chosen.model.teacher_id == f"weights/{variant.repository}"
    plain = config.parse(["--family", family, "--teacher_id", chosen.model.teacher_id])
    assert chosen.model == plain.model and chosen.method == plain.method
    assert chosen.optim.batch_size * chosen.optim.grad_accum == 4  # of 32, on 8 GPUs
    by_id = config.parse(["--family", family, "--teacher_id", f"{variant.repository}@main"])
    assert by_id.method == plain.method


@pytest.mark.parametrize("family", LAYOUTS)
def test_settings_are_the_familys_own_defaults(family):
    """A run by its script and one with `--family` alone have the same method."""
    chosen = config.parse(["--config", str(SCRIPTS / "configs" / f"{family}.yaml")])
    plain = config.parse(["--family", family])
    assert chosen.model == plain.model and chosen.method == plain.method
    assert chosen.model.teacher_id.endswith(f"weights/{LAYOUTS[family].repository}")
    assert chosen.optim.batch_size * chosen.optim.grad_accum == 4  # of 32, on 8 GPUs


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_blocks_of_a_family_are_sharded(family):
    chosen = yaml.safe_load((SCRIPTS / f"accelerate_{family}_fsdp.yaml").read_text())["fsdp_config"]
    assert tuple(chosen["fsdp_transformer_layer_cls_to_wrap"].split(",")) == family_class(family).block_classes
