"""Seed grids: the images that a report keeps of past evaluations are bounded."""

import shutil

import numpy as np
from PIL import Image

from dpdmd.evaluation import seed_grids
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.image_folder import file_name


def test_what_is_kept_of_images_is_bounded(tmp_path, monkeypatch):
    """Prompts, seeds, pixels and evaluations are limited. The first and the last evaluation stay."""
    monkeypatch.setattr(seed_grids, "EVALUATIONS", 6)
    folder = RunFolder.of(tmp_path / "run")
    for number in range(5):
        for n in range(10):
            for place in (folder.eval_images, folder.eval_images / "teacher"):
                path = place / "set" / file_name((number, n))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (200, 100), (n * 20, number * 40, 90)).save(path)
    sets = [ImageSet("set", [f"prompt {n}" for n in range(5)], 10, ())]
    for step in range(0, 60 * 9, 60):
        if step == 60:  # the teacher's sheets stay
            shutil.rmtree(folder.eval_images / "teacher")
        seed_grids.save(folder, step, sets)
    found = seed_grids.read(folder.seed_grids)
    steps = [step for step in found if step != seed_grids.TEACHER]
    assert len(steps) == seed_grids.EVALUATIONS and steps[0] == 0 and steps[-1] == 480
    assert set(np.diff(steps)) <= {60, 120}
    for grids in found.values():
        assert [grid.prompt for grid in grids] == [f"prompt {n}" for n in range(seed_grids.PROMPTS)]
        for grid in grids:
            assert grid.num_seeds == seed_grids.SEEDS
            with Image.open(grid.file) as image:
                assert image.size == grid.size == (3 * 192 + 2 * seed_grids.GAP, 3 * 96 + 2 * seed_grids.GAP)
    with Image.open(found[0][1].file) as image:  # seed 4 of prompt 1 is in the middle
        np.testing.assert_allclose(image.convert("RGB").getpixel((290, 146)), (80, 40, 90), atol=6)
    seed_grids.drop_later(folder.seed_grids, 200)
    assert [s for s in seed_grids.read(folder.seed_grids) if s != "teacher"] == [s for s in steps if s <= 200]
