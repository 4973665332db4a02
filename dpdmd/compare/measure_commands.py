"""Command lines of the measures that are our own, read as those programs read them: the root programs, and the small
world's oracle. Of anybody else's nothing is known."""

import argparse
import os.path
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from dpdmd.config.sampling_flags import check_ranges
from dpdmd.config.scorer_table import metric_names
from dpdmd.evaluation.program import Program
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.models.checks.folder import check_folder
from dpdmd.models.registry import LAYOUTS, family_of
from dpdmd.sampling.load_model import find_model
from dpdmd.shapes import measure
from dpdmd.shapes.categories import category
from dpdmd.shapes.oracle import PromptMetrics

ROOT_PROGRAMS = ("test_diversity.py", "test_preference.py", "test_quality.py")
WORLD = "dpdmd.shapes.measure"


@dataclass(frozen=True)
class Command:
    """One of them.

    Attributes:
        name: of the program.
        start: words before it, the launcher's.
        args: its flags.
        result: the file that it will write.
        program: of a root program; None for the small world's.
    """

    name: str
    start: int
    args: argparse.Namespace
    result: Path
    program: Program | None

    def check(self, job: Path) -> list[str]:
        """Check all that it points to but the model; `job` is the folder in which earlier measures leave theirs.

        Returns:
            Names of the metrics that it will give.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        return self._check_world() if self.program is None else self._check_root(self.program, job)

    def check_model(self) -> None:
        """Check that the model is there and one that the program can load.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        if self.program is None:
            models, base = self.args.model, None
        else:
            models = [] if self.args.images else [Path(self.args.model)]
            base = Path(self.args.base_model) if self.args.base_model else None
        for path in models:
            model = find_model(path, base)
            flag = "--model" if model.source == model.folder else "--base_model"
            check_folder(LAYOUTS[family_of(model.folder)], model.folder, flag, no_t5=model.defaults.no_t5)

    def _check_root(self, program: Program, job: Path) -> list[str]:
        args = self.args
        if args.images and _lies_in(Path(args.images), job):
            # An earlier measure of this job makes them; none or a part of them may be there by now.
            paths = check_scorer_paths(vars(args), program.scorers)
            program.prompts(args, paths)
        else:
            paths = program.check(args).paths
        return metric_names(paths)

    def _check_world(self) -> list[str]:
        check_ranges(vars(self.args))
        categories = dict.fromkeys(category(caption) for caption in measure.read_captions(self.args.prompt_txt))
        return [*(item.name for item in fields(PromptMetrics)), *(f"accuracy/{name}" for name in categories)]


def find(words: Sequence[str]) -> Command | None:
    """The one of them that a command line starts, with any launcher before it; None if it is none.

    Raises:
        ValueError: no such file, or flags that it does not know.
    """
    for start, word in enumerate(words):
        if word == WORLD and words[start - 1] == "-m":
            args = _parse(measure.build_parser(), words[start + 1 :])
            if args.out is None:
                raise ValueError(f"{WORLD}: give --out, or it leaves no result")
            return Command(word, start, args, args.out, None)
        if Path(word).name in ROOT_PROGRAMS:
            if not Path(word).is_file():
                raise ValueError(f"{word}: no such file")
            program = runpy.run_path(word)["PROGRAM"]  # with the paths at the top of the file as they are edited
            args = _parse(program.parser(), words[start + 1 :])
            return Command(program.name, start, args, Path(args.output_dir) / "summary.json", program)
    return None


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{parser.prog}: {message}")

    parser.error = refuse
    return parser.parse_args(words)


def _lies_in(path: Path, folder: Path) -> bool:
    """Also where `path` goes up and down: {out}/../pick_preference/pictures."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
