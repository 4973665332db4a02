"""Run folders with made-up metrics, and a strict parser of the report's page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from small_sweep import sweep_of

from dpdmd.compare import plane, tables
from dpdmd.compare.metrics import MeasuredMetric
from dpdmd.config import Config
from dpdmd.evaluation import seed_grids
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.run_folder import RunFolder
from dpdmd.sampling.image_folder import file_name

PROMPTS = ['a "red" <circle> & co', "</script><script>alert(1)</script>", "ein grünes Dreieck, 猫", "d", "e"]
METRICS = ("eval/set_div_clip", "eval/set_div_dino", "eval/set_preference_pickscore")


def make_run(
    root: Path,
    *,
    steps: int = 12,
    every: int = 6,
    shift: float = 0.0,
    images: bool = True,
    process_image: bool = False,
    **config,
) -> Path:
    """Write a run folder as the trainer does, with made-up metrics."""
    folder = RunFolder.of(root)
    folder.create()
    settings = Config()
    for name, value in {"max_steps": steps, **config}.items():
        group = next(group for group in vars(settings).values() if hasattr(group, name))
        setattr(group, name, value)
    folder.config.write_text(yaml.safe_dump(settings.as_dict(), sort_keys=False), encoding="utf-8")
    lines = []
    colours, teachers_colours = (np.random.default_rng(n).integers(0, 255, (999, 3)) for n in (int(shift * 100), 99))
    for step in range(steps + 1):
        if step:
            turn = "student" if step % 6 == 0 else "fake"
            losses = {f"loss_{turn}": 1 / step + shift, "grad_norm": None if step == 3 else 2.0}
            spent = {"seconds": 0.5, "samples_per_second": 16.0, "memory_gb": 1 + step / 100}
            lines.append({"step": step, "turn": turn, **losses, **spent})
        if every and step % every == 0:
            scores = {}
            for index, name in enumerate(METRICS):
                mean = 0.12345 * (index + 1) + step / 100 + shift
                scores |= {name: mean, f"{name}_low": mean - 0.05, f"{name}_high": mean + 0.05}
            teachers = {f"{name}_teacher": 0.5 + index for index, name in enumerate(METRICS)}
            lines.append({"step": step, "turn": "eval", **scores, **teachers, "seconds": 2.0})
            for number in range(len(PROMPTS)) if images else ():
                for n in range(4):
                    for place, colour in (
                        (folder.eval_images, colours[step * 30 + n]),
                        (folder.eval_images / "teacher", teachers_colours[n]),
                    ):
                        path = place / "set" / file_name((number, n))
                        path.parent.mkdir(parents=True, exist_ok=True)
                        Image.new("RGB", (16, 16), tuple(map(int, colour))).save(path)
            if images:
                seed_grids.save(folder, step, [ImageSet("set", PROMPTS, 4, ())])
    if process_image:
        shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))
        shown.save(folder.process_vis / "latest.png")
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {
        name: {"mean": 0.5 + i, "low": 0.4 + i, "high": 0.6 + i, "num_prompts": 3, "num_scored": 9, "num_missing": 0}
        for i, name in enumerate(METRICS)
    }
    folder.teacher_scores.write_text(json.dumps({"settings": {}, "metrics": rows}))
    folder.environment.write_text(json.dumps({"device": "Abacus <1>", "processes": 2, "versions": {"torch": "2.99"}}))
    return root


def make_sweep(root: Path, *, seeds: tuple[int, ...] = (0, 1), **options) -> Path:
    """Write the folder of a sweep of dmd and dpdmd as `dpdmd.compare` does, with runs of `make_run`."""
    columns = {"dmd": (0.64, 0.91), "dpdmd": (0.77, 0.94)}

    def metrics(x: float, y: float) -> dict[str, MeasuredMetric]:
        return {"entropy": MeasuredMetric(x, {}), "accuracy": MeasuredMetric(y, {})}

    results = {"teacher": {None: metrics(0.85, 0.96)}}
    for index, (name, (x, y)) in enumerate(columns.items()):
        results[name] = {seed: metrics(x + seed / 50, y - seed / 100) for seed in seeds}
        for seed in seeds:
            run = root / "runs" / name / f"seed_{seed}" / "run"
            make_run(run, shift=index / 10 + seed / 30, method=name, **options)
    sweep = sweep_of({"teacher": "m", "dmd": None, "dpdmd": None}, baseline="dmd", seeds=seeds, title="Two | methods")
    table = tables.compare(sweep, results)
    (root / "table.md").write_text(tables.as_markdown(sweep, table, "2026-11-29, `python -m dpdmd.compare a.yaml`"))
    (root / "table.csv").write_text(tables.as_csv(table))
    plane.draw_plane(sweep, table, root / "plane.png")
    return root


VOID = {"meta", "img", "input", "path", "use", "br", "link", "rect", "wbr"}


class Page(HTMLParser):
    """Parses strictly: elements must close in order. Keeps the tags, and the text outside scripts and styles."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [values[name] or "" for _, values in self.tags if name in values]
