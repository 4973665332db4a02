"""A sweep of two methods and a teacher with programs that take no time in place of training and measuring."""

from pathlib import Path

import yaml

from dpdmd.compare.sweep import Configuration, Measure, Plane, Sweep

# A training and a measure that take no time. They count their starts. The file `control` makes a training fail or wait.
TRAIN = """
import pathlib, sys, time
flags = dict(word.lstrip("-").split("=") for word in sys.argv if "=" in word)
run = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
seed = int(sys.argv[sys.argv.index("--seed") + 1])
run.mkdir(exist_ok=True)
(run / "environment.json").touch()  # as a run that has begun
with (run / "starts").open("a") as file:
    file.write("x")
control = pathlib.Path(__file__).with_name("control")
if control.exists() and control.read_text() == f"fail {flags['method']} {seed}":
    sys.exit("this went wrong")
while control.exists() and control.read_text() == "wait":
    time.sleep(0.05)
(run / "metrics.jsonl").touch()
(run / "value").write_text(str({"dmd": 0.5, "dpdmd": 0.75}[flags["method"]] + 0.01 * seed))
"""
MEASURE = """
import json, pathlib, sys
model, out = map(pathlib.Path, sys.argv[1:3])
value = float((model / "value").read_text())
out.mkdir(exist_ok=True)
prompts = {f"prompt {i}": {"accuracy": value + 0.01 * i, "entropy": {"size": value}} for i in range(-4, 5)}
(out / "figures.json").write_text(json.dumps({"model": {"prompts": prompts}}))
with (out / "starts").open("a") as file:
    file.write("x")
"""


def two_methods(tmp_path: Path, pipeline: Path) -> dict:
    """Return a sweep of two methods with two seeds each, and a teacher; `pipeline` is the teacher of the trainings."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "measure.py").write_text(MEASURE)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "value").write_text("0.9")
    return {
        "title": "Two methods",
        "flags": {"teacher_id": str(pipeline), "height": 64, "width": 64},
        "launcher": f"python {tmp_path / 'train.py'}",
        "seeds": [0, 1],
        "baseline": "dmd",
        "configurations": {
            "teacher": {"model": str(tmp_path / "teacher")},
            "dmd": {"flags": {"method": "dmd"}},
            "dpdmd": {"flags": {"method": "dpdmd"}, "paper": {"accuracy": 0.8}},
        },
        "measure": {
            "oracle": {
                "command": f"python {tmp_path / 'measure.py'} {{model}} {{out}}",
                "result": "figures.json",
                "metrics": ["accuracy", "entropy"],
            }
        },
    }


def call(values: dict, folder: Path, *extra: str) -> list[str]:
    """Write the sweep file and return its command line."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return [str(folder / "sweep.yaml"), "--out", str(folder / "out"), "--jobs", "2", *extra]


def starts(folder: Path) -> dict[str, int]:
    """Return how often each training and each measure was started."""
    return {str(p.parent.relative_to(folder / "out" / "runs")): len(p.read_text()) for p in folder.rglob("starts")}


def sweep_of(rows: dict[str, str | None], **more: object) -> Sweep:
    """Return a sweep with two columns and these rows (name -> model, None if it is trained)."""
    configurations = {name: Configuration(name, model, (), {}, {}, {}) for name, model in rows.items()}
    measures = {"m": Measure("m", ("x",), "y", {"entropy": "entropy", "accuracy": "accuracy"})}
    filled = {"title": "T", "config": None, "on_cores": True, "seeds": (0, 1), "baseline": None, "sample_grid": None}
    filled |= {"path": Path("sweeps/a_sweep.yaml"), "plane": Plane("entropy", "accuracy"), **more}
    return Sweep(configurations=configurations, measures=measures, **filled)
