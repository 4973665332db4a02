"""Builds the small world's weights: `python -m dpdmd.shapes.build [--scorers]`; a seed gives the same training."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL

from dpdmd.families.notes import Note
from dpdmd.shapes.autoencoder import train_autoencoder
from dpdmd.shapes.scorers import build_scorers
from dpdmd.shapes.teacher import train_teacher
from dpdmd.shapes.text import MAX_LENGTH

GUIDANCE_SCALE = 3.5  # paper's for SD3.5

logger = logging.getLogger("dpdmd.shapes.build")


def main(argv: Sequence[str] | None = None) -> int:
    """Train the autoencoder, then the teacher, and save the pipeline; or train the scorers."""
    parser = argparse.ArgumentParser(prog="dpdmd.shapes.build", description=__doc__, allow_abbrev=False)
    parser.add_argument("--scorers", action="store_true", help="train the scorers instead, beside the pipeline")
    parser.add_argument(
        "--out", type=Path, default=Path("weights/tiny/sd35"), help="pipeline folder (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all of it (default: %(default)s)")
    parser.add_argument("--vae_steps", type=int, default=2400, help="autoencoder updates (default: %(default)s)")
    parser.add_argument("--vae", type=Path, help="take this trained autoencoder instead of training one")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.perf_counter()
    if args.scorers:
        build_scorers(args.out.parent, args.seed)
        logger.info("scorers after %.0f s", time.perf_counter() - started)
        return 0
    vae = AutoencoderKL.from_pretrained(args.vae).eval() if args.vae else train_autoencoder(args.seed, args.vae_steps)
    logger.info("autoencoder after %.0f s", time.perf_counter() - started)
    if not args.vae:
        vae.save_pretrained(args.out / "vae")
    pipe = train_teacher(vae, args.seed)
    pipe.save_pretrained(args.out, safe_serialization=True)
    Note(steps=30, guidance_scale=GUIDANCE_SCALE, max_sequence_length=MAX_LENGTH).write(args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    logger.info("%s: %.1f MB after %.0f s", args.out, size, time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
