"""Runs: what cannot be read is a warning."""

import json

import pytest
from made_up_runs import make_run

from dpdmd.report.card_facts import Training
from dpdmd.report.model_card import _scores
from dpdmd.report.oracle_metrics import COLUMNS, read_oracle_metrics
from dpdmd.report.runs import RunEntry, read_runs


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ("run: {max_steps: !!int 0b_}", "config.yaml: no YAML ('0b_' is no int"),
        ("run: {seed: 2026-13-45}", "is no timestamp"),
        ("- 1", "config.yaml: has no groups of options"),
        ("run: 3", "config.yaml: has no groups of options"),
        ("run: {max_steps: many}", "config.yaml: max_steps is not an integer: 'many'"),
    ],
)
def test_a_damaged_configuration_is_a_warning_in_the_report(tmp_path, config, warning):
    run = make_run(tmp_path / "run", images=False)
    (run / "config.yaml").write_text(config)
    (line,) = read_runs([RunEntry(run)])[0].warnings
    assert warning in line


def test_a_record_that_no_run_wrote_is_a_warning_and_the_others_are_shown(tmp_path):
    run = make_run(tmp_path / "run", images=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "turn": ["x"]}\n{"step": 12, "turn": "eval", "eval/x": "0.3"}\n')
    read = read_runs([RunEntry(run)])[0]
    (line,) = read.warnings
    assert "metrics.jsonl, line 16: no record of a run (needs a turn" in line and line.endswith("(and 1 more line)")
    assert read.last_step == 12 and len(read.evaluations) == 3


def test_scores_of_other_prompts_are_in_no_curve_with_the_last_ones(tmp_path):
    """A resume with other evaluation prompts: the earlier scores stay in the tables, and a line says why."""
    run = make_run(tmp_path / "run", images=False)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in (record for record in records if record["turn"] == "eval"):
        record["conditions"] = "old" if record["step"] < 12 else "new"
        record |= {key.replace("eval/", "eval_ema/"): value for key, value in record.items() if "eval/" in key}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    read = read_runs([RunEntry(run)])[0]
    assert [record["step"] for record in read.evaluations] == [0, 6, 12]
    assert [record["step"] for record in read.comparable] == [12]
    assert [record["step"] for record in read.of_average().comparable] == [12]
    assert read.warnings == [
        "2 evaluations up to step 6 had other prompts, seeds or scorers than the last one: no plot or sheet shows them"
    ]


def test_a_card_compares_a_student_with_the_teacher_of_its_own_evaluation(tmp_path):
    """An earlier checkpoint's scores are of the prompts before a resume; the run's teacher is of those after it."""
    run = make_run(tmp_path / "run", images=False)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in (record for record in records if record["turn"] == "eval"):
        record["conditions"] = "old" if record["step"] < 12 else "new"
        if record["step"] < 12:
            record |= {key: 0.125 for key in record if key.endswith("_teacher")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    read = read_runs([RunEntry(run)])[0]
    earlier, last = ("\n".join(_scores(Training({}, step, run=read))) for step in (6, 12))
    assert "0.125" in earlier and "0.125" not in last


def test_a_model_of_the_run_is_known_by_a_path_from_elsewhere(tmp_path):
    """The oracle was called in another folder, or the run has moved since; a model that is there is another run's."""
    root, other = tmp_path / "a" / "run", tmp_path / "b" / "run" / "ckpts" / "latest"
    root.mkdir(parents=True)
    other.mkdir(parents=True)
    entry = {"steps": 4, "mean": dict.fromkeys(COLUMNS), "categories": {}}
    models = ["outputs/run/ckpts/latest", str(root / "ckpts" / "latest"), "outputs/teacher", str(other)]
    (root / "figures.json").write_text(json.dumps(dict.fromkeys(models, entry)))
    found = read_oracle_metrics(root / "figures.json", root)
    assert [model.in_run for model in found] == [True, True, False, False]
