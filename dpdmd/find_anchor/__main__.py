"""`python -m dpdmd.find_anchor` with the flags of `dpdmd.train`: find K, the teacher's steps to the anchor.

Measures on the teacher alone, without any training, how much of its samples is decided after K of its steps, and
reports the smallest K above a threshold (docs/anchor.md). Reads the flags of the teacher, of its precision and its
attention, the prompts, the image size, anchor_steps, batch_size and seed; the others have no effect. Writes anchor.json
and anchor.png to --out. Exit status: 0 done; 1 disk or memory is full; 2 wrong input.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.find_anchor")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpdmd.config import Config, parse
from dpdmd.config.anchor_search import NUM_PROMPTS, NUM_SEEDS, SPACES, THRESHOLD
from dpdmd.config.options import EvalConfig, OptimConfig, RunConfig
from dpdmd.config.sampling_flags import check_ranges, check_total
from dpdmd.config.validation import shown
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.run_folder import check_no_run
from dpdmd.utils.paths import check_replaced, check_writable, user_path
from dpdmd.utils.programs import make_parser, run_program
from dpdmd.utils.text_files import has_key


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's own flags."""
    parser = make_parser(
        "dpdmd.find_anchor",
        __doc__,
        usage="%(prog)s [OPTIONS] [the flags of dpdmd.train, such as --config FILE or --teacher_id and --prompt_txt]",
    )
    parser.add_argument(
        "--num_prompts", type=int, default=NUM_PROMPTS, help="of --prompt_txt, drawn by the seed (default: %(default)s)"
    )
    parser.add_argument(
        "--num_seeds", type=int, default=NUM_SEEDS, help="samples per prompt, at least 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="decidedness that K must reach (default: %(default)s)"
    )
    parser.add_argument(
        "--space",
        choices=SPACES,
        help="compare decoded images or latents (default: pixels, for images above 512 x 512 latents)",
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("outputs/find_anchor"), help="folder (default: %(default)s)"
    )
    return parser


def check(own: argparse.Namespace, flags: Sequence[str]) -> Config:
    """Check the flags, and return the configuration with only what concerns the teacher.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    check_single_process("it measures one teacher")
    check_ranges(vars(own))
    check_total("num_seeds", own.num_prompts, own.num_seeds)
    if own.num_seeds < 2:
        raise ValueError(f"--num_seeds {own.num_seeds}: give at least 2, since seeds are compared")
    if not 0 < own.threshold < 1:
        raise ValueError(f"--threshold {shown(own.threshold)}: must be above 0 and below 1")
    check_writable("--out", own.out)
    check_no_run("--out", own.out)
    check_replaced("--out", own.out, ("anchor.json", "anchor.png"), ours=has_key(own.out / "anchor.json", "curve"))
    config = parse(flags)
    config.model.student_id = config.model.fake_id = config.model.teacher_id
    config.model.lora_rank = config.method.perceptual_path = None
    optim = config.optim
    config.optim = OptimConfig(batch_size=optim.batch_size, bf16=optim.bf16, attention_backend=optim.attention_backend)
    config.eval, config.run = EvalConfig(), RunConfig(seed=config.run.seed, report_to="none")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    own, flags = build_parser().parse_known_args(argv)
    return run_program("dpdmd.find_anchor", lambda: _measure(own, flags))


def _measure(own: argparse.Namespace, flags: Sequence[str]) -> None:
    config = check(own, flags)
    # Imports torch, which takes seconds; diffusers is imported only once the input is known to be right.
    from dpdmd.find_anchor import measurement

    sys.stdout.write(f"{measurement.run(config, own)}\n")


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
