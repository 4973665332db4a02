"""The tables of a sweep are complete and escaped."""

import csv
import json
from pathlib import Path

import pytest
from small_sweep import sweep_of

from dpdmd.compare import outputs, tables
from dpdmd.compare.jobs import Job, Stage
from dpdmd.compare.metrics import MeasuredMetric
from dpdmd.compare.sweep import Measure
from dpdmd.evaluation.statistics import mean_over_seeds


def test_the_latex_table_is_complete_and_escaped():
    sweep = sweep_of({"a_b": None}, title=r"K_1 & 5% {} <>|~^ #$ " + "\\")
    row = {
        "div|dino_1": tables.Cell({0: -0.25}, mean_over_seeds([-0.25]), 0.5, None),
        "b": tables.Cell({}, None, None, None),
    }
    sweep.measures["m"] = Measure("m", ("x",), "y", {"div|dino_1": "x", "b": "b"})
    assert (
        tables.as_latex(sweep, {"a_b": row})
        == r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{K\_1 \& 5\% \{\} \textless{}\textgreater{}\textbar{}\textasciitilde{}\textasciicircum{} \#\$ \textbackslash{}.}
\label{tab:a_sweep}
\begin{tabular}{lcc}
\toprule
 & div\textbar{}dino\_1 & b \\
\midrule
a\_b & $-0.250$ (0.500) & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
    )
    assert r"|  | div\|dino_1 | b |" in tables.as_markdown(sweep, {"a_b": row}, "head").splitlines()


def test_a_difference_is_over_the_prompts_that_both_models_have():
    whole, partial = MeasuredMetric(0.5, {"a": 0.2, "b": 0.8}), MeasuredMetric(0.9, {"b": 0.9}, num_missing=1)
    sweep = sweep_of({"one": None, "other": None}, baseline="one")
    sweep.measures["m"] = Measure("m", ("x",), "y", {"c": "c"})
    cell = tables.compare(sweep, {"one": {None: {"c": whole}}, "other": {None: {"c": partial}}})["other"]["c"]
    assert cell.mean.mean == 0.9 and cell.difference.over_seeds.mean == pytest.approx(0.1)


def test_missing_scores_are_reported(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m.json").write_text(json.dumps({"done": True, "asked": {}}))
    metrics = {"vqr1": {"mean": None, "num_missing": 2}, "maniqa": {"mean": 0.5, "num_missing": 1}}
    metrics["clip_score"] = {"mean": 20.0, "num_missing": 0}
    (tmp_path / "m" / "summary.json").write_text(json.dumps({"metrics": metrics}))
    with (tmp_path / "m" / "per_image.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["prompt_index", "prompt", *metrics])
        rows.writeheader()
        rows.writerow({"prompt_index": 0, "prompt": "a " * 100_000, "clip_score": 20, "maniqa": 0.5})
    sweep = sweep_of({"one": None}, plane=None)
    sweep.measures["m"] = Measure("m", ("x",), "summary.json", {name: name for name in metrics})
    job = Job("one", None, tmp_path, Path("model"), (Stage("m", tmp_path, [], {}, False, {}, "summary.json"),))
    problems = outputs.write_tables(sweep, [job], tmp_path, "command").problems
    for problem, says in zip(problems, ("2 images without vqr1, see", "1 image without maniqa, see"), strict=True):
        assert problem.startswith(f"{tmp_path / 'm' / 'summary.json'}: {says}") and f"{tmp_path / 'm.json'}" in problem
