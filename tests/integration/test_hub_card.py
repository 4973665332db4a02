"""The model cards of students whose base is on the Hub, as a variant of its weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from edit_models import as_variant

from dpdmd import export, train
from dpdmd.report.card_facts import CARD


def text_of(folder: Path) -> tuple[dict, str]:
    text = (folder / CARD).read_text()
    return yaml.safe_load(text.split("---\n")[1]), text


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_a_card_names_the_repository_of_a_variant(hub, tiny_pipeline, short_run, tmp_path, monkeypatch, lora, local):
    """Its code loads the base by its id and variant; no path of this machine is in it."""
    name = "stabilityai/stable-diffusion-3.5-medium"
    teacher = Path(shutil.copytree(tiny_pipeline, tmp_path / "weights" / name))
    as_variant(teacher)
    (teacher / CARD).write_text("---\nlicense: mit\n---\n# Base\n")
    hub.add(name, teacher)
    run = tmp_path / "run"
    given = ["--teacher_id", str(teacher) if local else name, "--variant", "fp16", "--download", "--max_steps", "1"]
    more = ["--lora_rank", "2"] if lora else []
    assert train.main([*short_run, *given, *more, "--run_dir", str(run), "--vis_every", "0"]) == 0
    student = run / "ckpts/latest" / ("lora" if lora else "student")
    assert export.main(["--model", str(run), "--out", str(tmp_path / "exported")]) == 0
    for folder in (student, tmp_path / "exported"):
        head, text = text_of(folder)
        assert (head["base_model"], head["license"]) == (name, "mit")
        assert "variants" not in text and str(tmp_path) not in text
    if lora:
        code = re.findall(r"```python\n(.+?)```", text_of(student)[1], re.DOTALL)[0]
        commit = json.loads((student / "dpdmd.json").read_text())["base_revision"]
        exact = "" if local else f', revision="{commit}"'
        assert f'.from_pretrained("{name}", dtype=torch.float16, variant="fp16"{exact})' in code
        again = tmp_path / "again"  # from the Hub, where no run is known
        hub.add("me/lora", student.resolve())
        assert export.main(["--model", "me/lora", "--out", str(again), "--download"]) == 0
        assert json.loads((again / "dpdmd.json").read_text())["base"] is None
        head, text = text_of(again)
        assert "variants" not in text and (local or (head["base_model"], head["license"]) == (name, "mit"))
