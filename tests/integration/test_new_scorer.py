"""A new scorer is one module and one row of the table: the loop and a root program then use it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
MODULE = """
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor

from dpdmd.evaluation.scorers.base import Score, ValueScorer


class Brightness(ValueScorer):
    @classmethod
    def checks(cls, folder: Path):
        return [lambda: load_file(folder / "model.safetensors")]

    def __init__(self, folder: Path, device: torch.device, *, offset: float = 0.0):
        network = torch.nn.Linear(1, 1, bias=False)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        self.offset = offset
        self.set_network(network, device)

    def score(self, samples):
        means = torch.stack([to_tensor(sample.image).mean() for sample in samples])[:, None]
        return [Score(value + self.offset) for value in self.network(self.to_network(means))[:, 0].tolist()]
"""
ROW = """
    ScorerRow(
        "brightness",
        "Brightness",
        QUALITY,
        "dpdmd.evaluation.scorers.brightness:Brightness",
        (ScorerFile("brightness_path", "folder of the brightness", (MODEL,), "someone/brightness"),),
        in_loop=True,
        rescaled={"brightness_half": 2},
        options=(ScorerOption("offset", "brightness_offset", "is added to the brightness", (0.0, 1.0)),),
    ),
"""
PROGRAM = """
import json
import sys
from pathlib import Path

from dpdmd import train
from dpdmd.evaluation.program import Program
from dpdmd.report.scores import Metric
from dpdmd.training.memory_items import scorer_bytes

weights, out = sys.argv[1:3]
flags = [*sys.argv[3:], "--brightness_path"]
paths = {"prompts_txt": None, "base_model": None, "model": None, "num_samples": 1, "brightness_offset": 0.0}
paths |= {"images": f"{out}/run/eval_images/eval", "output_dir": f"{out}/scores", "brightness_path": weights}
program = Program("test_brightness.py", "Brightness of images.", ("brightness",), paths)
found = {
    "missing": train.main([*flags, "nowhere"]),
    "train": train.main([*flags, weights, "--best_by", "brightness"]),
    "out of bounds": program.main(["--brightness_offset", "2"]),
    "program": program.main(["--brightness_offset", "0.5"]),
    "label": Metric.of("eval/eval_preference_brightness_half").label,
    "bytes": scorer_bytes("brightness", {"brightness_path": Path(weights)}),
}
Path(out, "found.json").write_text(json.dumps(found))
"""


def test_a_new_scorer_is_a_module_and_a_row(tiny_pipeline, tmp_path):
    """In a copy of the package: used in the loop and by a root program, checked, labelled, counted in memory."""
    shutil.copytree(ROOT / "dpdmd", tmp_path / "dpdmd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dpdmd" / "evaluation" / "scorers" / "brightness.py").write_text(MODULE)
    table = tmp_path / "dpdmd" / "config" / "scorer_table.py"
    table.write_text(table.read_text().replace("\n_ROWS = (\n", f"\n_ROWS = ({ROW}"))
    (tmp_path / "made_up_run.py").write_text(PROGRAM)
    weights = tmp_path / "brightness"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    save_file({"weight": torch.full((1, 1), 3.0)}, weights / "model.safetensors")
    prompts = tmp_path / "eval.txt"
    prompts.write_text("a red circle\na small cross\n")
    flags = [
        *("--teacher_id", str(tiny_pipeline), "--prompt_txt", str(prompts), "--height", "64", "--width", "64"),
        *("--teacher_infer_steps", "2", "--k_anchor", "1", "--stu_inference_steps", "2", "--batch_size", "1"),
        *(
            "--pref_prompts",
            str(prompts),
            "--report_to",
            "none",
            "--run_dir",
            str(tmp_path / "run"),
            "--max_steps",
            "1",
        ),
    ]
    command = [sys.executable, str(tmp_path / "made_up_run.py"), str(weights), str(tmp_path), *flags]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    label = "Brightness / 2"
    assert found == {"missing": 2, "train": 0, "out of bounds": 2, "program": 0, "label": label, "bytes": 4}
    assert "--brightness_path nowhere: no such folder; get it from https://huggingface.co/someone/" in done.stderr
    assert "--brightness_offset 2" in done.stderr
    with (tmp_path / "scores" / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [np.asarray(Image.open(row["file"]), dtype=np.float64) / 255 for row in rows]
    assert [float(row["brightness"]) for row in rows] == pytest.approx([3 * i.mean() + 0.5 for i in images], abs=1e-5)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if record["turn"] == "eval")
    assert last["eval/eval_preference_brightness"] == pytest.approx(np.mean([3 * i.mean() for i in images]), abs=1e-5)
    assert last["eval/eval_preference_brightness_half"] == last["eval/eval_preference_brightness"] / 2
