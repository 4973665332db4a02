"""The configuration of a run: options <-> flags <-> YAML. `validate` tells what is wrong with the values alone.

Imports nothing heavy: a wrong flag is told within a second.
"""

import argparse
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from dpdmd.config.options import DataConfig, EvalConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from dpdmd.config.presets import FAMILIES, PRESETS
from dpdmd.config.validation import check_range, check_relations
from dpdmd.utils import strict_yaml
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.paths import expanded

MAX_MESSAGE = 400  # letters of argparse's own lines


@dataclass
class Config:
    """All of a run's configuration, in groups."""

    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    # Names that the command line itself gave: no option, so no field, and empty where a file or a test made this.
    given = frozenset()

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, group by group: what config.yaml holds."""
        return {group.name: dict(vars(getattr(self, group.name))) for group in fields(self)}

    def differences(self, other: "Config") -> list[str]:
        """Fields that must not change within a run and do: "name: ours, theirs"."""
        return [
            f"{item.name}: {getattr(ours, item.name)!r} here, {getattr(theirs, item.name)!r} there"
            for group in fields(self)
            for ours, theirs in [(getattr(self, group.name), getattr(other, group.name))]
            for item in fields(ours)
            if not item.metadata["may_change_on_resume"] and getattr(ours, item.name) != getattr(theirs, item.name)
        ]


def option_groups() -> dict[str, tuple[type, dict[str, Any]]]:
    """Group name -> (class, field name -> field)."""
    hints = typing.get_type_hints(Config)
    return {name: (kind, {item.name: item for item in fields(kind)}) for name, kind in hints.items()}


def value_type(kind: type, name: str) -> tuple[type, bool]:
    """(int | float | str | bool, may be None) of one field."""
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None)), True
    return hint, False


def _convert(value: Any, kind: type, name: str, place: str) -> Any:
    """A YAML value in its field's type; numbers may be written 1e-5, which YAML reads as text, and a,b as a list."""
    wanted, optional = value_type(kind, name)
    if wanted is str and isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ",".join(map(str, value))
    if value is None and optional:
        return None
    fits = (
        isinstance(value, bool)
        if wanted is bool
        else isinstance(value, (str, int, float)) and not isinstance(value, bool)
    )
    try:
        if not fits:
            raise ValueError
        return wanted(str(value)) if wanted is not bool else value
    except ValueError:
        raise ValueError(f"{place}: {name} must be {wanted.__name__}, not {value!r}") from None


def from_dict(values: dict[str, Any], place: str, onto: Config | None = None) -> Config:
    """Config of nested ({group: {name: value}}) or flat ({name: value}) plain values, over `onto` or the defaults.

    Raises:
        ValueError: unknown key or wrong type; the message names `place` and the key.
    """
    config, owner = onto or Config(), _owners()
    seen = set()
    for name, value, group in _pairs(values, place, owner):
        if name not in owner:
            near = difflib.get_close_matches(str(name), owner, n=1)
            raise ValueError(f"{place}: unknown key {name!r}" + (f" (did you mean {near[0]}?)" if near else ""))
        if group not in (None, owner[name]):
            raise ValueError(f"{place}: {name} belongs under {owner[name]}, not under {group}")
        if name in seen:
            raise ValueError(f"{place}: {name} is there twice")
        seen.add(name)
        of = getattr(config, owner[name])
        setattr(of, name, _convert(value, type(of), name, place))
    return config


def _owners() -> dict[str, str]:
    """Field name -> its group."""
    return {name: group for group, (_, items) in option_groups().items() for name in items}


def _pairs(values: dict[str, Any], place: str, owner: Collection[str]) -> Iterator[tuple[str, Any, str | None]]:
    """(name, value, the group that it stands under) of nested and flat values; an empty group is none."""
    groups = option_groups()
    for key, value in values.items():
        if key not in groups or (key in owner and not isinstance(value, dict)):  # `method` is a group and a field
            yield key, value, None
        elif isinstance(value, dict | None):
            yield from ((name, each, key) for name, each in (value or {}).items())
        else:
            raise ValueError(f"{place}: {key} must hold keys and values, not {value!r}")


def read_yaml(path: Path, onto: Config | None = None) -> Config:
    """Config of a YAML file, over `onto` or the defaults.

    Raises:
        ValueError: missing, no YAML mapping, unknown key or wrong type; the message names the file.
    """
    values = strict_yaml.read(path, f"--config {path}")
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold keys and values, such as 'k_anchor: 5'")
    return from_dict(values, f"--config {path}", onto)


def write_yaml(config: Config, path: Path) -> None:
    """Write the resolved configuration; `read_yaml` gives it back."""
    write_text(path, yaml.safe_dump(config.as_dict(), sort_keys=False))


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, for each program to tell it in one line: argparse would print a hundred flags above it."""

    def error(self, message: str) -> typing.NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split(" ")[0].partition("=")[0]
            near = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else ""
        if len(message) > MAX_MESSAGE:  # argparse repeats what was given, however long
            message = f"{message[:MAX_MESSAGE]}..."
        raise ValueError(message)


def build_parser() -> argparse.ArgumentParser:
    """The flags of `dpdmd.train`, grouped, each with its default and where that comes from."""
    parser = _Parser(
        prog="dpdmd.train",
        usage="%(prog)s [--config FILE ...] [--preset NAME] [--FLAG VALUE ...]",
        description="Distil a slow guided teacher into a few-step student that keeps its diversity.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file of any of the flags below; of several the later ones win, and flags over all",
    )
    sets = "; ".join(f"{name}: {preset.summary()}" for name, preset in PRESETS.items())
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"flags for a GPU of this size at SD3.5-Medium's 1024 x 1024; --config and flags win ({sets})",
    )
    for kind, items in option_groups().values():
        group = parser.add_argument_group((kind.__doc__ or "").splitlines()[0])
        for name, item in items.items():
            wanted, _ = value_type(kind, name)
            source = f", {item.metadata['source']}" if item.metadata["source"] else ""
            options: dict[str, Any] = {
                "help": f"{item.metadata['help']} (default: {item.default}{source})".replace("%", "%%")
            }
            if wanted is bool and name.startswith("no_"):  # its opposite, --no-no_..., is not worth a line of help
                group.add_argument(f"--no-{name}", dest=name, action="store_false", help=argparse.SUPPRESS)
                options["action"] = "store_true"
            elif wanted is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options.update(type=wanted, metavar=wanted.__name__.upper())
                if item.metadata["choices"]:
                    options.update(choices=item.metadata["choices"], metavar=None)
            group.add_argument(f"--{name}", **options)
    return parser


def parse(argv: Sequence[str] | None = None) -> Config:
    """Defaults, of the family where it has its own, then --preset, then the files of --config, then the flags.

    Raises:
        ValueError: unknown or malformed flag, unusable file, or values that `validate` refuses.
        SystemExit: after --help.
    """
    given = vars(build_parser().parse_args(argv))
    paths = given.pop("config", [])
    preset = given.pop("preset", None)
    config = _layered(Config(), preset, paths)
    if defaults := FAMILIES.get(given.get("family", config.model.family)):  # a wrong one is refused with all else below
        config = _layered(from_dict(defaults, "--family"), preset, paths)
    owner = _owners()
    for name, value in given.items():
        setattr(getattr(config, owner[name]), name, value)
    _expand_paths(config)
    validate(config)
    config.model.student_id = config.model.student_id or config.model.teacher_id
    config.model.fake_id = config.model.fake_id or config.model.teacher_id
    config.given = frozenset(given)
    return config


def _layered(config: Config, preset: str | None, paths: Sequence[str]) -> Config:
    """The configuration with a preset, then files of --config, over it."""
    if preset:
        config = from_dict(PRESETS[preset].values, f"--preset {preset}", config)
    for path in paths:
        config = read_yaml(_expanded("config", path), config)
    return config


def _expanded(name: str, text: str) -> Path:
    if not text.strip():
        raise ValueError(f"--{name} {text!r}: is empty; give a file, or leave it out")
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise ValueError(f"--{name} {error}") from None


def _expand_paths(config: Config) -> None:
    """Replace a leading ~, with which no text but a path begins, by the home that it stands for."""
    for group in vars(config).values():
        for name, value in vars(group).items():
            if isinstance(value, str) and value.startswith("~"):
                setattr(group, name, str(_expanded(name, value)))


def validate(config: Config) -> None:
    """Check the values alone: ranges, choices, and fields against each other.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    for group in vars(config).values():
        for item in fields(group):
            check_range(item.name, getattr(group, item.name), item.metadata)
    check_relations(config.model, config.method, config.optim, config.eval)
