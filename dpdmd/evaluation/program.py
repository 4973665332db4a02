"""What the root programs share: their flags, and the checks that run before anything heavy is imported.

A program scores the images of a model or of a folder, and writes OUT/pictures/, per_image.csv, summary.json and
table.txt (`program_run.py`).
"""

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.config.hub_flags import HubOptions, add_hub_flags
from dpdmd.config.sampling_flags import RANGES, add_sampling_flags, apply_size, check_ranges, check_total
from dpdmd.config.scorer_table import DIVERSITY_SCORERS, PREFERENCE_SCORERS, SCORERS
from dpdmd.data.prompt_files import COLUMN_HELP, read_prompts
from dpdmd.distributed.launch_env import check_launch
from dpdmd.evaluation.program_images import (
    check_no_sampling,
    check_pairs,
    check_prompts,
    check_readable,
    listed_images,
)
from dpdmd.evaluation.program_job import Job
from dpdmd.evaluation.scorer_files import check_scorer_paths, given_scorers, scorer_sources
from dpdmd.models.hub_models import Located, Source, locate_all
from dpdmd.sampling.given_images import GivenImages, find_images, is_table
from dpdmd.sampling.image_folder import GRIDS, PER_IMAGE, PICTURES, SUMMARY, TABLE, grid_files, read_settings
from dpdmd.sampling.model_source import locate_model
from dpdmd.utils.paths import check_replaced, check_writable, user_path
from dpdmd.utils.programs import run_program


@dataclass(frozen=True)
class Program:
    """One root program.

    Attributes:
        name: of its file.
        scorers: scorers that it can use; it uses those whose paths are given.
        defaults: flag -> value, the variables at the top of its file.
    """

    name: str
    description: str
    scorers: tuple[str, ...]
    defaults: Mapping[str, Any]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the program and return its exit status: 2 on wrong input, 1 if it had to stop."""
        status = run_program(self.name, lambda: self._run(self.check(self.parser().parse_args(argv))))
        if status and COLLECTIVES in sys.modules:  # else there is no process group yet
            from dpdmd.distributed import collectives

            collectives.exit_without_peers(status)
        return status

    def _run(self, job: Job) -> None:
        """Run a checked job.

        Raises:
            ValueError, OSError, MemoryError: as `program_run.run`; ConnectionAbortedError if another process is gone.
        """
        # These imports take seconds, so wrong input is reported before them.
        from dpdmd.sampling.find_model import find_model  # imports torch, the others all libraries

        if job.model:  # not in `check`: a sweep checks the commands of models that it has yet to train
            find_model(job.model, job.base_model)
        from dpdmd.distributed import collectives
        from dpdmd.evaluation.program_run import run

        try:
            run(job)
            collectives.destroy_process_group()
        except RuntimeError as error:
            lost = collectives.lost_peer_message(error)
            if lost is None:
                raise
            raise ConnectionAbortedError(
                f"another process of this call is gone ({lost}); the same command goes on with the images made"
            ) from None

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of the program's flags; the variables at the top of its file are the defaults.

        Raises:
            ValueError: a variable has a wrong type.
        """
        parser = argparse.ArgumentParser(
            prog=self.name,
            description=f"{self.description} Paths are variables at the top of the file, and flags; an empty one "
            "leaves its scorer out.",
            allow_abbrev=False,
        )
        rows = [SCORERS[name] for name in self.scorers]
        described = {item.flag: item.help for row in rows for item in (*row.files, *row.options) if item.help} | HELP
        for flag, value in {**self.defaults, **BATCH_SIZES}.items():
            kind = _kind(flag)
            options = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "action": _Given}
            options |= {"default": _checked_default(flag, value), "help": f"{described[flag]} (default: %(default)s)"}
            if flag == BASE_MODEL:  # does not replace the base that a LoRA names; see `locate_model`
                shown = str(options.pop("default")).replace("%", "%%")
                options["help"] = f"{described[flag]} (default of a network alone: {shown})"
            parser.add_argument(f"--{flag}", **options)
        parser.set_defaults(given=())
        parser.add_argument("--images_per_prompt", type=int, help=PER_PROMPT_HELP)
        parser.add_argument("--prompt_column", help=COLUMN_HELP)
        add_sampling_flags(parser, "seed", "steps", "guidance_scale", "height", "width", "size", "bf16")
        add_hub_flags(parser)
        return parser

    def check(self, args: argparse.Namespace) -> Job:
        """Check everything that can be checked before a model loads.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        check_launch()
        check_ranges(vars(args))
        apply_size(args)
        if not args.output_dir:
            raise ValueError("--output_dir: is empty; give a folder")
        out = Path(args.output_dir)
        for folder in (out, out / GRIDS, *([] if args.images else [out / PICTURES])):
            check_writable("--output_dir", folder)
        grids = [str(path.relative_to(out)) for path in grid_files(out)]
        check_replaced("--output_dir", out, (SUMMARY, PER_IMAGE, TABLE, *grids), ours=(out / SUMMARY).is_file())
        if not args.images and not args.model:
            raise ValueError("--model or --images: give what to score")
        check_no_sampling(args)
        scorers = given_scorers(vars(args), self.scorers)
        if not scorers:
            flags = [f"--{SCORERS[name].files[0].flag}" for name in self.scorers]
            raise ValueError(f"no scorer is given: {' or '.join(flags)}")
        table = listed_images(args)
        prompts = list(dict.fromkeys(image.prompt for image in table)) or self.prompts(args, scorers)
        if not args.images and not prompts:
            raise ValueError("--prompts_txt: give the prompts to make images of")
        if set(scorers) & PREFERENCE_SCORERS and not prompts:
            raise ValueError("--prompts_txt: these scorers compare images with their prompts; give them")
        options = {
            name: {option.argument: getattr(args, option.flag) for option in SCORERS[name].options} for name in scorers
        }
        given = GivenImages(table)
        if args.images and not table:
            given = find_images(Path(args.images), prompts, args.images_per_prompt)
            check_prompts(args, prompts)
        images = given.images
        if args.images:
            check_readable(Path(args.images), images)
        else:
            check_total("num_samples", len(prompts), args.num_samples)
            read_settings(out / PICTURES, "--output_dir")
        if set(scorers) <= DIVERSITY_SCORERS:
            check_pairs(args, images)
        model, base_model, paths = self.locate(args)  # last: a wrong path must not cost a download
        args.base_model = args.base_model or (base_model and str(base_model))  # for summary.json
        return Job(args, model, base_model, paths, options, prompts, images, given.note, out)

    def locate(self, args: argparse.Namespace) -> tuple[Path | None, Path | None, dict[str, dict[str, Path]]]:
        """Return the local paths of --model and --base_model, None if images are given, and of each scorer's flags.

        Raises:
            ValueError: a path does not hold what its flag needs, or a model is neither here nor in the Hub's cache.
            OSError: a model cannot be fetched from the Hub.
        """
        sources = scorer_sources(vars(args), self.scorers)
        model = base_model = None
        if args.images:
            found = locate_all(list(sources.values()), HubOptions.of(args))
        else:
            model, base_model, found = self.locate_model(args, list(sources.values()))
        local = {flag: str(one.path) for flag, one in zip(sources, found, strict=True)}
        return model, base_model, check_scorer_paths(vars(args) | local, self.scorers)

    def locate_model(
        self, args: argparse.Namespace, others: Sequence[Source] = ()
    ) -> tuple[Path, Path | None, list[Located]]:
        """Return the local paths of --model, --base_model and `others`; raises as `model_source.locate_model`."""
        default = self.defaults[BASE_MODEL]
        default = _path(str(default)) if default else None
        return locate_model(args.model, args.base_model, HubOptions.of(args), others, default_base=default)

    def prompts(self, args: argparse.Namespace, scorers: Collection[str]) -> list[str]:
        """Return the prompts of --prompts_txt if images are generated, a scorer needs them, or the flag was given.

        The default file is not read for the images of --images, because these may be of other prompts.

        Raises:
            ValueError: the file cannot be read.
        """
        if not self._reads_prompts(args, scorers):
            return []
        return read_prompts(Path(args.prompts_txt), "--prompts_txt", args.prompt_column)

    def inputs(self, args: argparse.Namespace) -> dict[str, Path]:
        """Return flag -> path of the scorers and the prompts that the program reads; it may be an id of the Hub."""
        scorers = given_scorers(vars(args), self.scorers)
        flags = [file.flag for name in scorers for file in SCORERS[name].files if getattr(args, file.flag)]
        flags += ["prompts_txt"] if self._reads_prompts(args, scorers) else []
        return {f"--{flag}": Path(getattr(args, flag)) for flag in flags}

    def _reads_prompts(self, args: argparse.Namespace, scorers: Collection[str]) -> bool:
        if not args.prompts_txt or (args.images and is_table(Path(args.images))):
            return False
        return not args.images or not PREFERENCE_SCORERS.isdisjoint(scorers) or "prompts_txt" in args.given


class _Given(argparse.Action):
    """Keep the value, and in `given` that the flag was given, be it with the default's value."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = (*namespace.given, self.dest)


def _kind(flag: str) -> Callable[[Any], Any]:
    """Return the type of a flag of `Program.defaults`: int, float, bool, or `_path`."""
    if flag in RANGES:
        return int if isinstance(RANGES[flag][1], int) else float
    return bool if any(flag == option.flag for row in SCORERS.values() for option in row.options) else _path


def _checked_default(flag: str, value: Any) -> Any:
    """Return the value of a variable at the top of a root program. A Path becomes its text.

    Raises:
        ValueError: it has not the type of its flag; one line that names the variable.
    """
    kind = _kind(flag)
    types, wanted = {
        int: (int, "a whole number"),
        float: ((int, float), "a number"),
        bool: (bool, "True or False"),
        _path: ((str, Path, type(None)), "one path in quotes, or None"),
    }[kind]
    if not isinstance(value, types) or isinstance(value, bool) != (kind is bool):
        name = flag.upper() if kind is _path else f'"{flag}"'
        raise ValueError(f"{name} in this program's file: must be {wanted}, not {value!r}")
    return str(value) if isinstance(value, Path) else value


def _path(text: str) -> str:
    """Return a flag's path with ~ expanded; an empty text stays empty."""
    return str(user_path(text)) if text else text


PER_PROMPT_HELP = (
    "with a folder as --images: take its images in their order, 2 before 10, this many for each prompt (default: their "
    "names say the prompts)"
)
BASE_MODEL = "base_model"
COLLECTIVES = "dpdmd.distributed.collectives"
BATCH_SIZES = {"gen_batch_size": 4, "batch_size": 32}
HELP = {
    "model": "run, checkpoint or pipeline folder, org/name, or with --base_model a .pt, .pth, .bin or .safetensors",
    BASE_MODEL: "pipeline that a LoRA or a network alone belongs to: a folder, or org/name on the Hub",
    "images": "score the images of this folder, or those in a CSV file with the columns file and prompt",
    "prompts_txt": "prompts, one a line or in a column; the default is read with --images only if scorers need it",
    "output_dir": "pictures/, per_image.csv, summary.json and table.txt",
    "num_samples": "images a prompt",
    "gen_batch_size": "images generated at a time on one process; their last bits depend on it",
    "batch_size": "images scored at a time on one process",
}
