"""The configuration of a run, from flags and YAML files. Imports nothing heavy: a wrong flag is reported at once."""

import argparse
import json
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dpdmd.config.flag_names import ALIASES, Alias, suggestion, unknown_arguments
from dpdmd.config.image_sizes import format_sizes
from dpdmd.config.presets import FAMILIES, PRESETS, preset_values
from dpdmd.config.schema import Config, equal_values, group_of_each_option, option_groups, value_type
from dpdmd.config.validation import check_range, check_relations, check_tracker_names
from dpdmd.config.variants import find_variant_of_teacher
from dpdmd.utils import strict_yaml
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.paths import LATEST, expanded

MAX_MESSAGE = 400  # letters of argparse's messages
LISTS = ("lora_targets", "sizes", "student_sigmas")  # options of the form a,b,..., which a file may give as a list


def _convert(value: Any, kind: type, name: str, place: str) -> Any:
    """Convert a YAML value to its field's type. YAML reads 1e-5 as text, and a,b may be written as a list (LISTS).

    A text may not be given as a fraction: 1.10 would become 1.1.
    """
    wanted, optional = value_type(kind, name)
    words = option_groups()[group_of_each_option()[name]][1][name].metadata["words"]
    if value in words:
        return value
    if name in LISTS and isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ",".join(map(str, value))
    if value is None and optional:
        return None
    kinds = (str, int) if wanted is str and name not in LISTS else (str, int, float)
    try:
        if not isinstance(value, kinds) or isinstance(value, bool) != (wanted is bool):
            raise ValueError
        return wanted(str(value)) if wanted is not bool else value
    except ValueError:
        other = f"; or give {', '.join(words)}" if words else ""
        if wanted is str and not isinstance(value, (list, dict)):
            whole = f"give {value:.0f}, or " if isinstance(value, float) and value.is_integer() else ""
            other = f"; {whole}put a text in quotes"
        raise ValueError(f"{place}: {name} must be {wanted.__name__}, not {value!r}{other}") from None


def from_dict(values: dict[str, Any], place: str, onto: Config | None = None) -> Config:
    """Return `onto`, or the defaults, with nested ({group: {name: value}}) or flat ({name: value}) values set.

    Raises:
        ValueError: an unknown key or a wrong type; the message names `place` and the key.
    """
    config, group_of = onto or Config(), group_of_each_option()
    seen = set()
    for name, value, group in _pairs(values, place, group_of):
        if name not in group_of:
            hint = suggestion(str(name), group_of, prefix="")
            raise ValueError(f"{place}: unknown key {name!r}" + (f" ({hint})" if hint else ""))
        if group not in (None, group_of[name]):
            raise ValueError(f"{place}: {name} belongs under {group_of[name]}, not under {group}")
        if name in seen:
            raise ValueError(f"{place}: {name} is given twice")
        seen.add(name)
        owner = getattr(config, group_of[name])
        setattr(owner, name, _convert(value, type(owner), name, place))
    return config


def _pairs(values: dict[str, Any], place: str, options: Collection[str]) -> Iterator[tuple[str, Any, str | None]]:
    """Yield (name, value, group in the file) of nested and flat values. The group of a flat value is None."""
    groups = option_groups()
    for key, value in values.items():
        if key not in groups or (key in options and not isinstance(value, dict)):  # `method` is a group and a field
            yield key, value, None
        elif isinstance(value, dict | None):
            yield from ((name, each, key) for name, each in (value or {}).items())
        else:
            raise ValueError(f"{place}: {key} must hold keys and values, not {value!r}")


def read_yaml(path: Path, onto: Config | None = None) -> Config:
    """Return `onto`, or the defaults, with the values of a YAML file set.

    Raises:
        ValueError: a missing file, not a YAML mapping, an unknown key or a wrong type; the message names the file.
    """
    return from_dict(_read_values(path), f"--config {path}", onto)


def _read_values(path: Path) -> dict[str, Any]:
    values = strict_yaml.read(path, f"--config {path}")
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold keys and values, such as 'k_anchor: 5'")
    return values


def _check_one_size(values: dict[str, Any], place: str, config: Config) -> None:
    """Check that a file's `values` in `config` give no size twice. With several sizes, a run's file also has a height.

    Raises:
        ValueError: height or width is not that of `sizes`.
    """
    given = {name for name, _, _ in _pairs(values, place, group_of_each_option())}
    data = config.data
    try:
        (size,) = data.image_sizes if "sizes" in given else ()
    except ValueError:  # no sizes, several, or unreadable ones, which `validate` reports if no flag replaces them
        return
    for name, side in size._asdict().items():
        if name in given and getattr(data, name) != side:
            raise ValueError(f"{place}: {name} {getattr(data, name)} and sizes {data.sizes}: leave out one of both")


def write_yaml(config: Config, path: Path) -> None:
    """Write the configuration, which `parse` reads back. Derived values (`Config.derive`) are comments.

    So a run that reads the file with another teacher derives them from that teacher. The checkpoint that this run
    started from is a comment too: another run with these settings would start from it unasked.
    """
    values, lines = config.as_dict(), []
    source = config.run.resume_from_checkpoint
    if source not in (None, LATEST):
        values["run"]["resume_from_checkpoint"] = None
        lines.append(f"started from {json.dumps(source, ensure_ascii=False)}")
    used = {name: value for items in values.values() for name, value in items.items() if name in config.underived}
    for items in values.values():
        items.update((name, value) for name, value in config.underived.items() if name in items)
    if used:
        lines += ["derived from other options or from the machine:", *yaml.safe_dump(used).splitlines()]
    write_text(path, "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(values, sort_keys=False))


class _Parser(argparse.ArgumentParser):
    """Raises errors for the program to print on one line. argparse itself would print all flags above them."""

    unknown: Sequence[str] = ()

    def parse_known_args(self, *arguments: Any) -> tuple[argparse.Namespace, list[str]]:
        parsed, self.unknown = super().parse_known_args(*arguments)
        return parsed, self.unknown

    def error(self, message: str) -> typing.NoReturn:
        if self.unknown:
            raise ValueError(unknown_arguments(self.unknown, self._option_string_actions))
        if len(message) > MAX_MESSAGE:  # argparse repeats the whole argument
            message = f"{message[:MAX_MESSAGE]}..."
        raise ValueError(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `dpdmd.train`. The help of each flag has the default and its source."""
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
        help="YAML file of any flags below; a later file overrides earlier ones, and flags override all files",
    )
    sets = "; ".join(f"{name}: {preset.summary()}" for name, preset in PRESETS.items())
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"flags for SD3.5-Medium at 1024 x 1024 on a GPU of this size; --config and flags override them ({sets}); "
        "a larger model has other flags, or no preset of this size",
    )
    aliases = {alias.flags[-1]: name for name, alias in ALIASES.items()}
    for kind, items in option_groups().values():
        group = parser.add_argument_group((kind.__doc__ or "").splitlines()[0])
        for name, item in items.items():
            wanted, _ = value_type(kind, name)
            _add_flag(group, name, item.metadata, item.default, wanted)
            if name in aliases:
                _add_alias(group, aliases[name], ALIASES[aliases[name]], wanted)
    return parser


def _add_flag(group: Any, name: str, metadata: Mapping[str, Any], default: Any, wanted: type) -> None:
    source = f", {metadata['source']}" if metadata["source"] else ""
    options: dict[str, Any] = {"help": f"{metadata['help']} (default: {default}{source})".replace("%", "%%")}
    if wanted is bool and name.startswith("no_"):  # --no-no_... is not shown in the help
        group.add_argument(f"--no-{name}", dest=name, action="store_false", help=argparse.SUPPRESS)
        options["action"] = "store_true"
    elif wanted is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options.update(type=_number_or(metadata["words"], wanted), metavar=wanted.__name__.upper())
        if metadata["choices"]:
            options.update(choices=metadata["choices"], metavar=None)
    group.add_argument(f"--{name}", **options)


def _number_or(words: Collection[str], wanted: type) -> Callable[[str], Any]:
    """Return argparse's conversion to a type, or to one of `words`. Its name is in argparse's message."""
    if not words:
        return wanted

    def convert(text: str) -> Any:
        return text if text in words else wanted(text)

    convert.__name__ = f"{wanted.__name__} or {' or '.join(words)}"
    return convert


def _add_alias(group: Any, name: str, alias: Alias, wanted: type) -> None:
    if alias.is_switch:
        options: dict[str, Any] = {"action": "store_true"}
    elif alias.values is not None:
        options = {"choices": tuple(alias.values)}
    else:
        options = {"type": wanted, "metavar": wanted.__name__.upper()}
    group.add_argument(f"--{name}", help=alias.help(), **options)


def parse(argv: Sequence[str] | None = None) -> Config:
    """Combine the model's defaults, --preset, the files of --config, and flags, in this order.

    Raises:
        ValueError: an unknown or malformed flag, an unusable file, or values that `validate` rejects.
        SystemExit: after --help.
    """
    given = vars(build_parser().parse_args(argv))
    paths = given.pop("config", [])
    preset = given.pop("preset", None)
    given = _without_aliases(given, _layered(Config(), {}, preset, paths))
    config, of_preset = _on_defaults(preset, paths, given)
    group_of = group_of_each_option()
    found = {name: getattr(getattr(config, group_of[name]), name) for name in of_preset if name not in given}
    outvoted = {
        name: of_preset[name] for name, value in found.items() if not equal_values(name, value, of_preset[name])
    }
    for name, value in given.items():
        setattr(getattr(config, group_of[name]), name, value)
    expand_paths(config)
    validate(config)
    _set_first_size(config, given)
    for name in ("student_id", "fake_id"):
        if getattr(config.model, name) is None:
            config.derive("model", name, config.model.teacher_id)
    config.given, config.outvoted = frozenset(given), outvoted
    return config


def _without_aliases(given: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return the flags of a command line (name -> value) with our flags in place of their aliases.

    Args:
        config: the values of the files, for the folder that a path is in.

    Raises:
        ValueError: an alias has a value that its flag may not have, or another value than its flag.
    """
    own = {name: value for name, value in given.items() if name not in ALIASES}
    items = {name: (group, item) for group, (_, items) in option_groups().items() for name, item in items.items()}
    for name, alias in ALIASES.items():
        if name not in given:
            continue
        typed = f"--{name}" if alias.is_switch else f"--{name} {given[name]}"
        if alias.values is None:
            check_range(name, given[name], items[alias.flags[0]][1].metadata)
        value = given[name] if alias.values is None else alias.values[given[name]]
        if alias.under and not Path(_expanded(name, value)).is_absolute():
            folder = own.get(alias.under) or getattr(getattr(config, items[alias.under][0]), alias.under)
            if folder is None:
                raise ValueError(f"{typed}: is a folder in the run folder; give --{alias.under} with it")
            value = str(Path(folder) / value)
        for flag in alias.flags:
            if not equal_values(flag, own.setdefault(flag, value), value):
                other = {True: f"--{flag}", False: f"--no-{flag}"}.get(own[flag], f"--{flag} {own[flag]}")
                raise ValueError(f"{typed} and {other}: contradict each other; give one of them")
    return own


def on_defaults_of_the_model(preset: str | None, paths: Sequence[str], given: Mapping[str, Any]) -> Config:
    """Return the defaults of the family, then of the teacher's variant, with the values of a preset and files set."""
    return _on_defaults(preset, paths, given)[0]


def _on_defaults(
    preset: str | None, paths: Sequence[str], given: Mapping[str, Any]
) -> tuple[Config, Mapping[str, Any]]:
    """Return what `on_defaults_of_the_model` does, and the values of the preset.

    Family and teacher may come from a flag, a file or a default, so the files are read before they are known.
    """
    family = given.get("family", _layered(Config(), {}, preset, paths).model.family)
    defaults = FAMILIES.get(family, {})  # `validate` rejects an unknown one
    files = _layered(from_dict(defaults, "--family"), {}, preset, paths)
    teacher = given.get("teacher_id", files.model.teacher_id)
    place = (given.get(name, getattr(files.hub, name)) for name in ("revision", "cache_dir"))
    try:
        variant = find_variant_of_teacher(family, expanded(teacher), *place)
    except (ValueError, OSError):  # later checks say what is wrong
        variant = None
    values = preset_values(preset, family, variant and variant.name) if preset else {}
    own = {**defaults, **(variant.values if variant else {})}
    return _layered(from_dict(own, "--family"), values, preset, paths), values


def _layered(config: Config, values: Mapping[str, Any], preset: str | None, paths: Sequence[str]) -> Config:
    """Return the configuration with the values of a preset, then of files, set."""
    if values:
        config = from_dict(dict(values), f"--preset {preset}", config)
    for path in paths:
        teacher, config.model.teacher_id = config.model.teacher_id, None
        file = Path(_expanded("config", path))
        in_file, place = _read_values(file), f"--config {file}"
        config = from_dict(in_file, place, config)
        _check_one_size(in_file, place, config)
        if config.model.teacher_id is None:
            config.model.teacher_id = teacher
            continue
        for name in ("student_id", "fake_id"):  # older versions wrote the teacher's folder where none was given
            if getattr(config.model, name) == config.model.teacher_id:
                setattr(config.model, name, None)
    return config


def _expanded(name: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f"--{name} {text!r}: is empty; give a file, or leave it out")
    try:
        return expanded(text)
    except ValueError as error:
        raise ValueError(f"--{name} {error}") from None


def expand_paths(config: Config) -> None:
    """Expand a leading ~, and text files in place of links, in all strings. Only paths have ~ or a slash."""
    for group in vars(config).values():
        for name, value in vars(group).items():
            if isinstance(value, str) and (value.startswith("~") or "/" in value):
                setattr(group, name, _expanded(name, value))


def _set_first_size(config: Config, given: Collection[str]) -> None:
    """Let height and width be those of the first of `--sizes`; one size alone is height and width.

    Raises:
        ValueError: --height or --width is a flag, too.
    """
    data = config.data
    if data.sizes is None:
        return
    for name in ("height", "width"):
        if name in given:
            raise ValueError(
                f"--{name} {getattr(data, name)}: --sizes {data.sizes} has the sizes; leave out one of both"
            )
    sizes = data.image_sizes
    data.sizes = format_sizes(sizes) if len(sizes) > 1 else None
    for name, side in next(iter(sizes))._asdict().items():
        if data.sizes:
            config.derive("data", name, side)
        else:
            setattr(data, name, side)


def validate(config: Config) -> None:
    """Check ranges, choices and relations of values, without files or devices.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    for group in vars(config).values():
        for item in fields(group):
            check_range(item.name, getattr(group, item.name), item.metadata)
    _ = config.data.image_sizes  # its form is checked where it is read
    check_relations(config.model, config.method, config.optim, config.eval)
    check_tracker_names(config.run)
