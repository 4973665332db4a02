"""Commands printed in the documents, in fences and inline code, held against the programs' own parsers."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from dpdmd import config

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("python", "bash", "sbatch", "accelerate", "torchrun", "pip")
# Without a program of ours: the shell's own, and tools that setup.py or the system brings.
TOOLS = ("printf", "source", "tail", "tensorboard", "hf")
LAUNCH_VARIABLES = ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line: as printed, its variables, and its words without redirections and comments."""

    text: str
    variables: dict[str, str]
    words: list[str]


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, dedented."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            text[: match.start()].count("\n") + 1,
            match[2],
            "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)),
        )
        for match in FENCE.finditer(text)
    ]


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of shell lines: continued lines joined, `&&` split."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield command(line, words[:end])
            words = words[end + 1 :]


def command(text: str, words: Sequence[str]) -> Command:
    """Split leading variables and trailing redirections from the words of one command."""
    variables, plain = {}, list(words)
    while plain and re.fullmatch(r"[A-Z_]+=.*", plain[0]):
        name, _, value = plain.pop(0).partition("=")
        variables[name] = value
    cut = next((place for place, word in enumerate(plain) if word in ("<", ">", "|")), len(plain))
    return Command(text, variables, plain[:cut])


def inline_commands(document: Path) -> Iterator[Command]:
    """Yield the commands in a document's inline code."""
    for text in INLINE.findall(prose(document)):
        if text.split()[0] in (*PROGRAMS, *TOOLS) and " " in text:
            yield command(text, shlex.split(text))


class Parsed(Exception):
    """A program's parser took its command line; `flags` are all that the program's parsers know."""

    def __init__(self, flags: set[str]):
        self.flags = flags


def fits(main: Callable[[], object], *, read: bool = True) -> set[str]:
    """Check that a program's own parser takes the flags with which `main` is called; the program goes no further.

    Returns:
        All flags that the program's parsers know; with `read` false nothing is parsed.

    Raises:
        AssertionError: it does not take them.
    """
    parse, parse_known, known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, set()

    def take_own(parser: argparse.ArgumentParser, *arguments: object, **named: object) -> object:
        known.update(parser._option_string_actions)
        return parse_known(parser, *arguments, **named)

    def then_stop(parser: argparse.ArgumentParser, *arguments: object, **named: object) -> None:
        if read:
            parse(parser, *arguments, **named)
        raise Parsed(known | set(parser._option_string_actions))

    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", then_stop),
            mock.patch.object(argparse.ArgumentParser, "parse_known_args", take_own),
        ):
            status = main()
    except Parsed as parsed:
        return parsed.flags
    except SystemExit as exit_:
        status = exit_.code
    assert status == 0, f"the command line is refused with status {status}"
    return set()


def program_of(words: Sequence[str]) -> Callable[[list[str]], int | None]:
    """Return the main function of `python -m MODULE` or `python FILE`.

    Raises:
        AssertionError: there is no such program in the checkout.
    """
    if words[0] == "-m":
        name = words[1]
        found = importlib.util.find_spec(name)
        assert name.startswith("dpdmd.") and found, f"no module {name}"
        return importlib.import_module(f"{name}.__main__" if found.submodule_search_locations else name).main
    path = ROOT / words[0]
    assert path.is_file(), f"no file {words[0]}"
    namespace = runpy.run_path(str(path))
    if "PROGRAM" in namespace:
        return namespace["PROGRAM"].main

    def main(arguments: list[str]) -> int | None:
        with mock.patch.object(sys, "argv", [words[0], *arguments]):
            return namespace["main"]()

    return main


def check_python(words: Sequence[str]) -> None:
    """Check the words after `python`."""
    if words[:2] == ["-m", "venv"]:
        return
    arguments = list(words[2:] if words[0] == "-m" else words[1:])
    main = program_of(words)
    with chdir(ROOT):
        fits(lambda: main(arguments))
        if words[1:2] == ["dpdmd.train"] and "--help" not in arguments:
            config.parse(arguments)  # also the values


def check_launcher(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Check a launcher's own flags, and the program that it starts; without one the flags alone."""
    own = parser.parse_args(
        [*words, *([] if any(word.endswith(".py") or word == "-m" for word in words) else ["x.py"])]
    )
    if file := getattr(own, "config_file", None):
        assert (ROOT / file).is_file(), f"no file {file}"
    if own.training_script != "x.py":
        check_python([*(["-m"] if own.module else []), own.training_script, *own.training_script_args])


def check_script(words: Sequence[str], variables: dict[str, str]) -> None:
    """Check a shell script's existence, its arguments and the variables that it is given."""
    path = ROOT / words[0]
    assert path.is_file(), f"no file {words[0]}"
    text, arguments = path.read_text(encoding="utf-8"), list(words[1:])
    if "/run_train.sh" in text:  # which reads the other variables
        text += (ROOT / "scripts" / "run_train.sh").read_text(encoding="utf-8")
    for name in variables:
        assert re.search(rf"\$\{{{name}:?-", text), f"{words[0]} reads no {name}"
    if path.name.startswith(("run_train", "slurm_train")):
        if path.name == "run_train.sh":
            arguments = ["--config", f"scripts/configs/{arguments[0]}.yaml", *arguments[1:]]
        with chdir(ROOT):
            config.parse(arguments)
    elif path.name == "download_weights.sh":
        lists = re.findall(r"^(?:training|all)=\((.*)\)", text, re.MULTILINE)
        assert set(arguments) <= set(" ".join(lists).split()), arguments
    elif path.name != "run_tests.sh" or arguments[:1] == ["quick"]:  # else pytest takes them
        assert all(word in text for word in arguments), arguments


def check(found: Command) -> None:
    """Check that a command's program, flags, files and variables exist.

    Raises:
        AssertionError: one does not, or nothing is known of the program.
    """
    name, *words = found.words
    if name in ("bash", "sbatch"):
        check_script(words, found.variables)
        return
    assert set(found.variables) <= set(LAUNCH_VARIABLES), found.variables
    if name == "python" or name == "python3":
        check_python(words)
    elif name == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words.pop(0) == "launch"
        check_launcher(launch_command_parser(), words)
    elif name == "torchrun":
        from torch.distributed.run import get_args_parser

        check_launcher(get_args_parser(), words)
    elif name == "pip":
        extras = setup_extras()
        for word in words[1:]:
            assert set(re.findall(r"\[(.*)\]", word)) <= extras, word
    else:
        assert name in TOOLS, f"nothing is known of {name}"


def setup_extras() -> set[str]:
    """Return the extras of setup.py."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    return {*re.findall(r'^    "(\w+)": \[', text, re.MULTILINE), "all"}
