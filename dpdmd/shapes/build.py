"""Train the small world's weights: `python -m dpdmd.shapes.build [--pairs|--scorers]`. A seed gives the same training.

`--pairs` continues from the pipeline for one object and trains the pipeline for one or two. After an interruption the
same command goes on from what is whole in OUT_cycles: the autoencoder, and the teacher's last cycle. OUT is written at
the end.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.shapes.build")

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, SD3Transformer2DModel

from dpdmd.config.sampling_flags import check_ranges
from dpdmd.models.identity import digest, identify
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import check_model_folder
from dpdmd.shapes.autoencoder import LATENT_CHANNELS, train_autoencoder
from dpdmd.shapes.recipes import ONE_OBJECT, PAIRS
from dpdmd.shapes.scorers import build_scorers
from dpdmd.shapes.teacher import train_teacher
from dpdmd.shapes.text import MAX_LENGTH
from dpdmd.utils.folders import creating_folder, delete_tree
from dpdmd.utils.paths import check_writable, user_path
from dpdmd.utils.programs import make_parser, run_program
from dpdmd.utils.text_files import read_json

GUIDANCE_SCALE = 3.5  # the paper's, for SD3.5
OUT, OUT_PAIRS = Path("weights/tiny/sd35"), Path("weights/tiny/sd35_pairs")

logger = logging.getLogger("dpdmd.shapes.build")


def main(argv: Sequence[str] | None = None) -> int:
    """Train and save the pipeline, or with `--scorers` the scorers; return the exit status, 2 for wrong input."""
    parser = make_parser("dpdmd.shapes.build", __doc__)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--scorers", action="store_true", help="train the scorers, into the folder above --out")
    target.add_argument("--pairs", action="store_true", help="train the pipeline for one or two objects")
    parser.add_argument("--out", type=user_path, help=f"pipeline folder (default: {OUT}, with --pairs {OUT_PAIRS})")
    parser.add_argument(
        "--start", type=user_path, default=OUT, help="with --pairs: start from this pipeline (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--vae", type=user_path, help="use this trained autoencoder")
    args = parser.parse_args(argv)
    out = args.out or (OUT_PAIRS if args.pairs else OUT)
    return run_program("dpdmd.shapes.build", lambda: _run(args, out))


def _run(args: argparse.Namespace, out: Path) -> None:
    check(args, out)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        build(args, out)
    except OSError as error:
        raise OSError(f"{error}; the same command goes on") from None


def build(args: argparse.Namespace, out: Path) -> None:
    """Train and save what the flags ask for."""
    started = time.perf_counter()
    if args.scorers:
        build_scorers(out.parent, args.seed)
        logger.info("scorers after %.0f s", time.perf_counter() - started)
        return
    recipe, start_vae, start = ONE_OBJECT, None, None
    if args.pairs:
        recipe = PAIRS
        start_vae = load_vae(args.start / "vae")
        start = SD3Transformer2DModel.from_pretrained(args.start, subfolder="transformer")
    cycles = out.with_name(out.name + "_cycles")
    trained = args.vae or cycles / f"vae{'_of_pairs' if args.pairs else ''}_of_seed_{args.seed}"
    if trained.is_dir():
        vae = load_vae(trained).eval()
    else:
        vae = train_autoencoder(args.seed, recipe.vae_steps, recipe.world, start_vae)
        with creating_folder(trained) as folder:
            vae.save_pretrained(folder)
    logger.info("autoencoder after %.0f s", time.perf_counter() - started)
    sources = {"vae": trained, "start": args.start / "transformer" if args.pairs else None}
    pipe = train_teacher(vae, args.seed, recipe, start, saved=cycles, made_from=digest(identify(sources)))
    with creating_folder(out) as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        SamplingDefaults(steps=30, guidance_scale=GUIDANCE_SCALE, max_sequence_length=MAX_LENGTH).write(folder)
    delete_tree(cycles)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    logger.info("%s: %.1f MB after %.0f s", out, size, time.perf_counter() - started)


def check(args: argparse.Namespace, out: Path) -> None:
    """Check the flags before a training of an hour begins.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    check_ranges({"seed": args.seed})
    check_writable("--out", out.parent)
    start = args.start / "transformer"
    folders = {"--start": [args.start / "vae", start]} if args.pairs else {}
    folders |= {"--vae": [args.vae]} if args.vae else {}
    for flag, parts in folders.items():
        for folder in parts:
            try:
                check_model_folder(folder)
                if folder is not start:
                    _check_vae(folder)
            except ValueError as error:
                raise ValueError(f"{flag} {folder}: {error}") from None
    if not args.scorers and out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise ValueError(f"--out {out}: is there already; give another --out")


def _check_vae(folder: Path) -> None:
    """Check that a folder holds an autoencoder whose latents the small world's networks take.

    Raises:
        ValueError: it holds another model.
    """
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL" or config.get("latent_channels") != LATENT_CHANNELS:
        raise ValueError(f"holds no AutoencoderKL with {LATENT_CHANNELS} latent channels")


def load_vae(folder: Path) -> AutoencoderKL:
    """Load an autoencoder without the name of its folder, which diffusers would save with it."""
    vae = AutoencoderKL.from_pretrained(folder)
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    unnamed = AutoencoderKL.from_config(config)
    unnamed.load_state_dict(vae.state_dict())
    return unnamed


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
