"""The inner half of the root programs: a model or a folder of pictures in, scores of every picture out.

OUT/pictures/  per_image.csv  summary.json  table.txt
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdmd.evaluation.files import REQUIREMENTS, check_scorer_paths
from dpdmd.evaluation.job import Job
from dpdmd.evaluation.pictures import find_pictures
from dpdmd.prompts import read_prompts


@dataclass(frozen=True)
class Program:
    """One root program.

    Attributes:
        name: of its file.
        scorers: those it knows; the ones whose paths are given are used.
        defaults: flag -> value, the variables at the top of its file; `COMMON` comes on top.
        options: scorer -> {option of its class: flag}.
    """

    name: str
    description: str
    scorers: tuple[str, ...]
    defaults: Mapping[str, Any]
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Score; exit status 2 on wrong input."""
        args = self._parser().parse_args(argv)
        try:
            job = self._check(args)
            # Seconds of imports: only now, so that wrong input is told at once.
            from dpdmd.evaluation.scoring import run

            run(job)
        except ValueError as error:
            print(f"{self.name}: error: {error}", file=sys.stderr)
            return 2
        return 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=self.name,
            description=f"{self.description} Paths are variables at the top of the file, and flags.",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for flag, value in {**self.defaults, **COMMON}.items():
            if isinstance(value, bool):
                parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=value, help=HELP[flag])
            else:
                kind = type(value) if isinstance(value, (int, float)) else TYPES.get(flag, str)
                parser.add_argument(f"--{flag}", type=kind, default=value, help=HELP.get(flag, "a scorer's weights"))
        return parser

    def _check(self, args: argparse.Namespace) -> Job:
        """All that can be told before anything loads.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        for flag in ("num_samples", "gen_batch_size", "batch_size", "steps", "num_crops"):
            value = getattr(args, flag, None)
            if value is not None and value < 1:
                raise ValueError(f"--{flag} {value}: must be at least 1")
        paths = check_scorer_paths(vars(args), self.scorers)
        if not paths:
            flags = [f"--{REQUIREMENTS[name][0]}" for name in self.scorers]
            raise ValueError(f"no scorer is given: {' or '.join(flags)}")
        if args.images is None and not args.model:
            raise ValueError("--model or --images: give what to score")
        prompts = read_prompts(Path(args.prompts_txt), "--prompts_txt") if args.prompts_txt else []
        if args.images is None and not prompts:
            raise ValueError("--prompts_txt: give the prompts to make pictures of")
        if set(paths) & NEED_PROMPTS and not prompts:
            raise ValueError("--prompts_txt: these scorers compare pictures with their prompts; give them")
        out = Path(args.output_dir)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--output_dir {out}: is a file; give a folder")
        options = {
            name: {option: getattr(args, flag) for option, flag in self.options.get(name, {}).items()} for name in paths
        }
        found = find_pictures(Path(args.images), prompts) if args.images else []
        return Job(args, paths, options, prompts, found, out)


# Flags of every root program; None: what the model's folder says.
COMMON = {
    "seed": 0,
    "steps": None,
    "guidance_scale": None,
    "height": None,
    "width": None,
    "gen_batch_size": 4,
    "batch_size": 32,
    "bf16": False,
}
NEED_PROMPTS = {"pickscore", "imagereward", "clip_score"}
TYPES = {"steps": int, "guidance_scale": float, "height": int, "width": int}
HELP = {
    "model": "run folder, checkpoint, pipeline folder, or a student's .pt with --base_model",
    "base_model": "pipeline folder that a .pt network belongs to",
    "images": "score the pictures of this folder instead of making any",
    "prompts_txt": "prompts, one a line",
    "output_dir": "pictures, per_image.csv, summary.json and table.txt",
    "num_samples": "pictures a prompt",
    "seed": "of the start noises and of whatever a scorer draws",
    "steps": "sampling steps; without it what the model's folder says",
    "guidance_scale": "without it what the model's folder says",
    "height": "pixels; without it the model's",
    "width": "pixels; without it the model's",
    "gen_batch_size": "pictures made at a time on one process; their last bits depend on it",
    "batch_size": "pictures scored at a time on one process",
    "bf16": "networks of the generator compute in bf16",
    "num_crops": "MANIQA's random crops of a picture",
    "maniqa_scale": "MANIQA's residual scale: 0.8 as the release, 0.13 as pyiqa",
    "vq_sample": "draw VisualQuality-R1's answers as the paper did instead of taking the likeliest",
}
