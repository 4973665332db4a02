"""The flags of training: their declarations, the command line, YAML files, and checks."""

from dpdmd.config.parser import Config, build_parser, equal_values, from_dict, parse, read_yaml, validate, write_yaml

__all__ = ["Config", "build_parser", "equal_values", "from_dict", "parse", "read_yaml", "validate", "write_yaml"]
