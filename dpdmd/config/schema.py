"""The configuration of a run as a whole: its groups of options, their fields and types. Imports nothing heavy."""

import types
import typing
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from dpdmd.config.options import DataConfig, EvalConfig, HubConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from dpdmd.utils.paths import same_place


@dataclass
class Config:
    """The configuration of a run, in groups."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    # Names of the flags on the command line. Not an option, so not a field; empty for a Config from a file.
    given = frozenset()
    # Values of --preset that a file of --config replaced, and no flag, by name.
    outvoted = types.MappingProxyType({})
    # Values before `derive` set them, by name; in config.yaml they stay underived.
    underived = types.MappingProxyType({})
    # Values that files record in place of a model's local folder, by name: "org/name@commit" of the Hub.
    recorded = types.MappingProxyType({})

    def derive(self, group: str, name: str, value: Any) -> None:
        """Set an option that the user left to another option or to the machine."""
        owner = getattr(self, group)
        self.underived = {name: getattr(owner, name), **self.underived}
        setattr(owner, name, value)

    def locate(self, group: str, name: str, folder: str, recorded: str | None) -> None:
        """Set a model's option to its local folder; if `recorded` is not None, files record that value instead."""
        setattr(getattr(self, group), name, folder)
        if recorded is not None:
            self.recorded = {**self.recorded, name: recorded}

    def take_found(self, other: "Config") -> None:
        """Replace each word that stands for a number to be found (`words` of a field) by the number of another run."""
        for group, (_, items) in option_groups().items():
            for name, item in items.items():
                if getattr(getattr(self, group), name) in item.metadata["words"]:
                    setattr(getattr(self, group), name, getattr(getattr(other, group), name))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values by group, as in config.yaml."""
        groups = {group.name: vars(getattr(self, group.name)) for group in fields(self)}
        return {
            group: {name: self.recorded.get(name, value) for name, value in values.items()}
            for group, values in groups.items()
        }

    def differences(self, other: "Config") -> list[str]:
        """Return the fields that differ and may not change on resume, as "name: ours here, theirs there"."""
        ours, theirs = self.as_dict(), other.as_dict()
        return [
            f"{name}: {value!r} here, {theirs[group][name]!r} there"
            for group, (_, items) in option_groups().items()
            for name, value in ours[group].items()
            if not items[name].metadata["may_change_on_resume"] and not equal_values(name, value, theirs[group][name])
        ]


@cache
def option_groups() -> dict[str, tuple[type, dict[str, Any]]]:
    """Return group name -> (class, field name -> field)."""
    hints = typing.get_type_hints(Config)
    return {name: (kind, {item.name: item for item in fields(kind)}) for name, kind in hints.items()}


@cache
def value_type(kind: type, name: str) -> tuple[type, bool]:
    """Return the type of a field (int, float, str or bool) apart from its words, and whether it may be None."""
    hint = typing.get_type_hints(kind)[name]
    if isinstance(hint, types.UnionType):
        parts = typing.get_args(hint)
        return parts[0], type(None) in parts
    return hint, False


def equal_values(name: str, one: Any, other: Any) -> bool:
    """Return whether two values of an option are equal. Paths are equal if they name one place."""
    if one == other:
        return True
    is_path = any(items[name].metadata["path"] for _, items in option_groups().values() if name in items)
    return is_path and isinstance(one, str) and isinstance(other, str) and same_place(one, other)


@cache
def group_of_each_option() -> dict[str, str]:
    """Return option name -> group name."""
    return {name: group for group, (_, items) in option_groups().items() for name in items}
