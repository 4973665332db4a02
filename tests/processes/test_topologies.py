"""Processes, accumulation, sharding and resuming change a trajectory only by the order of fp32 sums."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# fp32 keeps 7 digits. In the first of the six clipped updates of 1e-3, AdamW divides by |g|: if the sign of a gradient
# near 0 depends on the last digit, its weight moves by up to 2e-3 per step. A wrong average or norm moves all weights.
TOLERANCES = {"loss": 1e-4, "grad_norm": 1e-4, "score": 1e-3, "weight_mean": 1e-6, "weight_max": 5e-3}


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Run the benchmark and return topology -> quantity -> difference from one process."""
    out = tmp_path_factory.mktemp("topologies")
    done = subprocess.run(
        [sys.executable, "benchmarks/topologies.py", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(out.glob("*_topologies.json")).read_text())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "topology",
    [
        "1 process x 2, accumulation 2",
        "2 processes x 2, DDP",
        "2 processes x 2, FSDP2, teacher sharded",
        "2 processes (DDP), then 1",
        "1 process, then 2 (FSDP2)",
        "2 processes (FSDP2), then 2 (DDP)",
    ],
)
def test_every_topology_takes_one_trajectory(differences, topology):
    """Losses, clipped gradient norms, in-loop scores and, after six steps, the weights of both networks agree."""
    assert differences[topology].keys() == TOLERANCES.keys()
    assert {name: value for name, value in differences[topology].items() if value > TOLERANCES[name]} == {}


def test_the_average_is_scored_where_weights_stay_gathered(short_run, tiny_scorers, run_processes, tmp_path):
    """Without `reshard_after_forward`, an evaluation of the student left its weights gathered for the next one."""
    flags = [*short_run, "--max_steps", "4", "--vis_every", "0", "--ema_decay", "0.5", "--per_train_fake_num", "1"]
    flags += ["--clip_path", tiny_scorers["clip_path"], "--eval_prompts_limit", "2", "--eval_every", "2"]
    runs = {kind: tmp_path / kind[1:] for kind in ("+FSDP2", "+gathered")}
    launched = [word for kind, run in runs.items() for word in (kind, *flags, "--run_dir", str(run))]
    run_processes(["tests/processes/drivers/fsdp_cpu.py", *launched])
    sharded, gathered = map(evaluations, runs.values())
    assert sharded == gathered and len(sharded) >= 2
    averaged = [key for key in sharded[-1] if key.startswith("eval_ema/")]
    assert any(sharded[-1][key] != sharded[-1][key.replace("eval_ema", "eval")] for key in averaged)


def evaluations(run: Path) -> list[dict]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{**record, "seconds": 0} for record in records if record["turn"] == "eval"]
