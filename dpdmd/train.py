"""`accelerate launch -m dpdmd.train`: parse, check, run.

Exit status: 0 done; 1 stopped by a failure that is told in one line (a loss that is not finite, a full disk, too
little memory); 2 wrong input; 128 + its number after SIGINT (130), SIGUSR1 (138) or SIGTERM (143), all saved.
"""

import sys
from collections.abc import Sequence

import torch

from dpdmd import config, preflight
from dpdmd.checkpoint import SaveError
from dpdmd.diagnostics import NonFiniteError
from dpdmd.interruption import Interrupted

OUT_OF_MEMORY = (
    "out of memory: lower --batch_size (and raise --grad_accum), give --gradient_checkpointing, --bf16 or "
    "--offload_scorers, lower --height and --width or --eval_batch_size, or shard over GPUs with "
    "scripts/accelerate_sd35_fsdp.yaml"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    status, why = _run(argv)
    if why:
        print(f"dpdmd.train: {why}", file=sys.stderr)
    return status


def _run(argv: Sequence[str] | None) -> tuple[int, str]:
    """Exit status, and the line to leave on the terminal."""
    try:
        plan = preflight.check(config.parse(argv))
        # diffusers takes seconds to import: only now, so that wrong input is told at once.
        from dpdmd.trainer import Trainer

        trainer = Trainer(plan)
    except ValueError as error:
        return 2, f"error: {error}"
    except torch.OutOfMemoryError as error:
        return 1, f"stopped: {OUT_OF_MEMORY} ({_first_line(error)})"
    except OSError as error:
        return 1, f"stopped: {error}"
    try:
        trainer.train()
    except Interrupted as interrupted:
        return interrupted.status, f"stopped: {interrupted}"
    except torch.OutOfMemoryError as error:
        return 1, f"stopped: {OUT_OF_MEMORY} ({_first_line(error)})"
    except (NonFiniteError, SaveError) as error:
        return 1, f"stopped: {error}"
    except OSError as error:
        return 1, f"stopped: {error}; the checkpoints written before are whole"
    return 0, ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
