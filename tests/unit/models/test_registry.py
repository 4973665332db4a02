"""The families by name, and the adapters that the flags ask for."""

import ast
import re
from pathlib import Path

import pytest
import torch

from dpdmd.config.options import ModelConfig
from dpdmd.config.presets import FAMILIES
from dpdmd.models import registry
from dpdmd.models.base import Family
from dpdmd.models.layout import Layout
from dpdmd.models.lora import Adapter
from dpdmd.models.registry import LAYOUTS, adapters, family_class, family_of

PACKAGE = Path(registry.__file__).parents[1]


def test_no_other_room_names_a_family():
    """But for the default flags of each family, and the small world, which is an SD3.5."""
    allowed = {"config/presets.py", "config/variants.py", "config/options.py"}
    named = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(("models/", "shapes/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = node.module if isinstance(node, ast.ImportFrom) else ""
            text = node.value if isinstance(node, ast.Constant) else ""
            if text in LAYOUTS or any(f"dpdmd.models.{family}" in (imported or "") for family in LAYOUTS):
                named.add(place)
    assert named == allowed


def test_families_and_layouts_are_the_same_names(tiny_folder):
    assert tuple(LAYOUTS) == tuple(FAMILIES)
    assert [family_class(name).__name__.lower() for name in FAMILIES] == [name.replace("_", "") for name in LAYOUTS]
    assert [family_of(tiny_folder(name)) for name in LAYOUTS] == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_family_is_a_folder_with_the_same_file_names(name):
    """The registry finds a family's modules by these names, and so does a reader."""
    folder = Path(registry.__file__).parent / name
    assert {"family.py", "layout.py"} <= {path.name for path in folder.iterdir()}
    assert isinstance(LAYOUTS[name], Layout)
    family = family_class(name)(torch.device("cpu"), torch.float32)
    assert isinstance(family, Family) and type(family).__module__ == f"dpdmd.models.{name}.family"


def test_an_unknown_family_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=rf"^unknown family 'sd21' \(known: {', '.join(LAYOUTS)}\)$"):
        family_class("sd21")
    assert family_of(tmp_path) == "sd35"  # a folder of no family gets the first one's error


def test_ranks_and_alphas_of_the_flags(tiny_pipeline):
    given = {"teacher_id": str(tiny_pipeline), "lora_rank": 4}
    pair = adapters(ModelConfig(**given, lora_alpha=2.0, fake_lora_rank=8, lora_targets="to_q, to_k"))
    assert pair.student == Adapter(4, 2.0, ("to_q", "to_k"))
    assert pair.fake == Adapter(8, 4.0, ("to_q", "to_k"))  # the student's ratio of alpha to rank
    assert adapters(ModelConfig()) is None
    assert adapters(ModelConfig(**given)).student.alpha == 4


@pytest.mark.parametrize(
    ("family", "target", "module"),
    [
        ("sd35", "net.0.proj,proj", "proj names pos_embed.proj"),  # a convolution
        ("sd35", "0", "0 names transformer_blocks.0"),  # besides to_out.0
        (
            "zimage",
            "adaLN_modulation.0",
            "adaLN_modulation.0 names all_final_layer.2-1.adaLN_modulation.0",
        ),  # no weights
    ],
)
def test_a_target_may_not_name_what_is_no_linear_layer(tiny_folder, family, target, module):
    layout = LAYOUTS[family]
    with pytest.raises(ValueError, match=f"^{re.escape(module)} of .*, too, which is no linear layer; give more of"):
        layout.adapted_layers(tiny_folder(family), target.split(","))
