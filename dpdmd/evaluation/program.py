"""The inner half of the root programs: a model or a folder of images in, scores of every image out.

OUT/pictures/  per_image.csv  summary.json  table.txt
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdmd.config.sampling_flags import check_ranges, check_total
from dpdmd.data.prompts import read_prompts
from dpdmd.distributed.launch_env import check_launch
from dpdmd.evaluation.in_loop_setup import DIVERSITY
from dpdmd.evaluation.program_job import IMAGES, Job
from dpdmd.evaluation.scorer_files import REQUIREMENTS, check_scorer_paths
from dpdmd.sampling.image_folder import ImageFile, find_images, is_whole, read_manifest
from dpdmd.utils.paths import check_writable, user_path
from dpdmd.utils.text_files import one_line


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
        args = self.parser().parse_args(argv)
        try:
            job = self.check(args)
            # Seconds of imports: only now, so that wrong input is told at once.
            from dpdmd.distributed import collectives
            from dpdmd.evaluation.program_run import run

            run(job)
            collectives.destroy_process_group()
        except ValueError as error:
            print(f"{self.name}: error: {one_line(error)}", file=sys.stderr)
            return 2
        except (OSError, MemoryError) as error:
            print(f"{self.name}: stopped: {one_line(error)}", file=sys.stderr)
            return 1
        except RuntimeError as error:
            lost = collectives.lost_peer_message(error)
            if lost is None:
                raise
            told = f"another process of this call is gone ({lost}); the same command goes on with the images made"
            print(f"{self.name}: stopped: {told}", file=sys.stderr)
            collectives.exit_without_peers(1)
            return 1
        return 0

    def parser(self) -> argparse.ArgumentParser:
        """The program's flags, with the paths at the top of its file as their defaults."""
        parser = argparse.ArgumentParser(
            prog=self.name,
            description=f"{self.description} Paths are variables at the top of the file, and flags; an empty one "
            "leaves its scorer out.",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        for flag, value in {**self.defaults, **COMMON}.items():
            if isinstance(value, bool):
                parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=value, help=HELP[flag])
            else:
                kind = type(value) if isinstance(value, (int, float)) else TYPES.get(flag, _path)
                parser.add_argument(f"--{flag}", type=kind, default=value, help=HELP[flag])
        return parser

    def check(self, args: argparse.Namespace) -> Job:
        """All that can be told before anything loads.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        check_launch()
        check_ranges(vars(args))
        if not args.output_dir:
            raise ValueError("--output_dir: is empty; give a folder")
        out = Path(args.output_dir)
        check_writable("--output_dir", out)
        paths = check_scorer_paths(vars(args), self.scorers)
        if not paths:
            flags = [f"--{REQUIREMENTS[name][0]}" for name in self.scorers]
            raise ValueError(f"no scorer is given: {' or '.join(flags)}")
        if not args.images and not args.model:
            raise ValueError("--model or --images: give what to score")
        prompts = self.prompts(args, paths)
        if not args.images and not prompts:
            raise ValueError("--prompts_txt: give the prompts to make images of")
        if set(paths) & NEED_PROMPTS and not prompts:
            raise ValueError("--prompts_txt: these scorers compare images with their prompts; give them")
        options = {
            name: {option: getattr(args, flag) for option, flag in self.options.get(name, {}).items()} for name in paths
        }
        found = find_images(Path(args.images), prompts) if args.images else []
        if args.images:
            _check_found(Path(args.images), found)
        else:
            check_total("num_samples", len(prompts), args.num_samples)
            read_manifest(out / IMAGES, "--output_dir")
        if set(paths) <= set(DIVERSITY):
            _check_pairs(args, found)
        return Job(args, paths, options, prompts, found, out)

    def prompts(self, args: argparse.Namespace, scorers: Collection[str]) -> list[str]:
        """Those of --prompts_txt, where they are needed or were asked for.

        The default file says nothing of the images of --images: most scorers do without, and take any names then.

        Raises:
            ValueError: the file cannot be read.
        """
        needed = not args.images or not NEED_PROMPTS.isdisjoint(scorers)
        if not args.prompts_txt or not (needed or args.prompts_txt != self.defaults["prompts_txt"]):
            return []
        return read_prompts(Path(args.prompts_txt), "--prompts_txt")


def _path(text: str) -> str:
    """A path as a flag's value; an empty one stands for none."""
    return str(user_path(text)) if text else text


def _check_found(folder: Path, found: list[ImageFile]) -> None:
    """One that can be read is enough: the others will be counted as missing."""
    if not any(is_whole(image.path) for image in found):
        raise ValueError(
            f"--images {folder}: none of its {len(found)} images can be read; {found[0].path} is the first"
        )


def _check_pairs(args: argparse.Namespace, found: list[ImageFile]) -> None:
    """Diversity is of pairs: without one there would be nothing to report."""
    if not args.images and args.num_samples < 2:
        raise ValueError(f"--num_samples {args.num_samples}: diversity compares images of a prompt; give at least 2")
    if args.images and len({image.key[0] for image in found}) == len(found):
        raise ValueError(
            f"--images {args.images}: no two images are of one prompt, and diversity compares such; name them "
            "00012_000.png and 00012_001.png"
        )


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
    "images": "score the images of this folder instead of making any",
    "prompts_txt": "prompts, one a line; the default is read with --images only if a scorer compares with prompts",
    "output_dir": "pictures/, per_image.csv, summary.json and table.txt",
    "pick_processor_path": "PickScore's processor, the folder of CLIP ViT-H-14",
    "pick_model_path": "PickScore's folder",
    "ir_model_path": "ImageReward.pt",
    "ir_med_config": "ImageReward's med_config.json",
    "ir_tokenizer_path": "folder of BERT's tokenizer; without it the folder of ImageReward.pt",
    "clip_score_path": "CLIP's folder, for text alignment",
    "clip_path": "CLIP's folder",
    "dino_path": "DINOv2's or DINOv3's folder",
    "maniqa_path": "MANIQA's .pth",
    "vq_path": "VisualQuality-R1's folder",
    "num_samples": "images a prompt",
    "seed": "of the start noises and of whatever a scorer draws",
    "steps": "sampling steps; without it what the model's folder says",
    "guidance_scale": "without it what the model's folder says",
    "height": "pixels; without it the model's",
    "width": "pixels; without it the model's",
    "gen_batch_size": "images made at a time on one process; their last bits depend on it",
    "batch_size": "images scored at a time on one process",
    "bf16": "networks of the generator compute in bf16",
    "num_crops": "MANIQA's random crops of an image",
    "maniqa_scale": "MANIQA's residual scale: 0.8 as the release, 0.13 as pyiqa",
    "vq_sample": "draw VisualQuality-R1's answers as the paper did instead of taking the likeliest",
}
