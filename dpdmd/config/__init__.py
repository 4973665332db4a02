"""The flags of training: their declarations, the command line, YAML files, and checks."""

from dpdmd.config.parser import (
    build_parser,
    expand_paths,
    from_dict,
    on_defaults_of_the_model,
    parse,
    read_yaml,
    validate,
    write_yaml,
)
from dpdmd.config.schema import Config, equal_values

__all__ = [
    "Config",
    "build_parser",
    "equal_values",
    "expand_paths",
    "from_dict",
    "on_defaults_of_the_model",
    "parse",
    "read_yaml",
    "validate",
    "write_yaml",
]
