"""Parse a measure's command with the parser of its own program: a root program, or `dpdmd.shapes.measure`.

Commands of other programs cannot be checked.
"""

import argparse
import ast
import os.path
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.sampling_flags import check_ranges, check_total
from dpdmd.config.scorer_table import metric_names
from dpdmd.evaluation.program import Program
from dpdmd.evaluation.program_images import check_no_sampling
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.models.checks.folder import check_folder
from dpdmd.sampling.find_model import find_model
from dpdmd.sampling.image_folder import SUMMARY
from dpdmd.shapes import measure
from dpdmd.shapes.world import IMAGE_SIZE
from dpdmd.utils.error_lines import shorten_error

ROOT_PROGRAMS = ("test_diversity.py", "test_preference.py", "test_quality.py")
ORACLE = "dpdmd.shapes.measure"


@dataclass(frozen=True)
class MeasureCommand:
    """A parsed command of a root program or of the small world's oracle.

    Attributes:
        name: of the program.
        start: number of words before the program, those of the launcher.
        args: its flags.
        result: the file that it writes.
        program: the root program; None for the oracle.
    """

    name: str
    start: int
    args: argparse.Namespace
    result: Path
    program: Program | None

    def check(self, job: Path, size: ImageSize | None = None) -> list[str]:
        """Check all paths except the model; earlier measures write into subfolders of `job`.

        Args:
            size: of the images of a model that is still to be trained.

        Returns:
            Names of the metrics that the program gives.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        return self._check_oracle(size) if self.program is None else self._check_root(self.program, job)

    def inputs(self) -> dict[str, Path]:
        """Return flag -> path of the scorers and prompts that the program reads."""
        return {"--prompt_txt": self.args.prompt_txt} if self.program is None else self.program.inputs(self.args)

    def check_model(self) -> None:
        """Check that the program can load the model.

        Raises:
            ValueError: one line that names the flag and what to do.
        """
        found: list[tuple[Path, Path | None]] = []
        if self.program is None:
            found = [(path, None) for path in self.args.model]
        elif not self.args.images:
            found = [self.program.locate_model(self.args)[:2]]
        for path, base in found:
            model = find_model(path, base)
            flag = "--model" if model.source == model.folder else "--base_model"
            check_folder(model.layout, model.folder, flag, no_t5=model.defaults.no_t5)
            if self.program is None:
                measure.check_size(model)

    def _check_root(self, program: Program, job: Path) -> list[str]:
        args = self.args
        if args.images and _is_inside(Path(args.images), job):
            # An earlier measure of this job makes these images; some or none may exist yet.
            check_no_sampling(args)
            paths = check_scorer_paths(vars(args), program.scorers)
            program.prompts(args, paths)
        else:
            paths = program.check(args).paths
        return metric_names(paths)

    def _check_oracle(self, size: ImageSize | None) -> list[str]:
        check_ranges(vars(self.args))
        if size and tuple(size) != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"--height {size.height} --width {size.width}: the oracle of the small world reads {IMAGE_SIZE} x "
                f"{IMAGE_SIZE} pixels; leave them out"
            )
        if len(self.args.model) > 1:
            raise ValueError("--model: a measure is of one model; give {model} alone")
        captions = measure.read_captions(self.args.prompt_txt, self.args.prompt_column)
        check_total("num_seeds", len(captions), self.args.num_seeds)
        return measure.metric_names(captions)


def parse_command(words: Sequence[str]) -> MeasureCommand | None:
    """Parse a command line, with any launcher before the program; return None for other programs.

    Raises:
        ValueError: the program's file does not exist or is broken, or it does not know a flag.
    """
    for start, word in enumerate(words):
        if word == ORACLE and words[start - 1] == "-m":
            args = _parse(measure.build_parser(), words[start + 1 :])
            if args.out is None:
                raise ValueError(f"{ORACLE}: give --out, or it writes no result")
            return MeasureCommand(word, start, args, args.out, None)
        if Path(word).name in ROOT_PROGRAMS:
            program = _load_program(word)
            if program is None:
                return None
            args = _parse(program.parser(), words[start + 1 :])
            return MeasureCommand(program.name, start, args, Path(args.output_dir) / SUMMARY, program)
    return None


def _load_program(path: str) -> Program | None:
    """Run the file of a root program, and return its program: with the paths at the top as the user edited them.

    Return None, and run nothing, for a program of this name that does not use this package.

    Raises:
        ValueError: the file does not exist, or it is broken.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        statements = ast.parse(Path(path).read_bytes(), path).body
        imported = [str(part.module) for part in statements if isinstance(part, ast.ImportFrom)]
        if not any(name.startswith("dpdmd.") for name in imported):
            return None
        program = runpy.run_path(path).get("PROGRAM")
    except (Exception, SystemExit) as error:  # of any statement that the user edited
        raise ValueError(f"{path}: is broken ({type(error).__name__}: {shorten_error(error)}); mend it") from None
    if not isinstance(program, Program):
        raise ValueError(f"{path}: is broken (it defines no PROGRAM); mend it")
    return program


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    def help_asked(file: object = None) -> NoReturn:
        raise ValueError(f"{parser.prog}: with -h or --help it measures nothing; remove it")

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{parser.prog}: {message}")

    parser.error, parser.print_help = fail, help_asked
    return parser.parse_args(words)


def _is_inside(path: Path, folder: Path) -> bool:
    """Resolve `..` in paths such as {out}/../pick_preference/pictures, which may not exist yet."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
