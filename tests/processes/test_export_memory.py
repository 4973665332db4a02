"""An export holds one tensor at a time: its peak memory does not grow with the model."""

import subprocess
import sys
from pathlib import Path

from diffusers import SD3Transformer2DModel
from processes import cpu_environment

PEAK = """
import resource, sys
from dpdmd import export
status = export.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(status)
"""


def peak_megabytes(model: Path, out: Path, *flags: str) -> float:
    command = [sys.executable, "-c", PEAK, "--model", str(model), "--out", str(out), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=cpu_environment())
    return float(done.stdout.splitlines()[-1])


def test_the_peak_of_a_larger_model_is_that_of_a_small_one(tiny_pipeline, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    for path in tiny_pipeline.iterdir():
        if path.name != "transformer":
            (large / path.name).symlink_to(path)
    config = SD3Transformer2DModel.load_config(tiny_pipeline / "transformer")
    wider = {"num_layers": 40, "num_attention_heads": 16, "caption_projection_dim": 256}
    network = SD3Transformer2DModel.from_config(config | wider)
    network.save_pretrained(large / "transformer")
    size = sum(value.numel() for value in network.state_dict().values()) * 4 / 2**20
    del network
    small = peak_megabytes(tiny_pipeline, tmp_path / "small_out", "--dtype", "bf16")
    assert size > 250
    for name, flags in (("half", ["--dtype", "bf16"]), ("whole", [])):
        assert peak_megabytes(large, tmp_path / name, *flags) < small + size / 4
