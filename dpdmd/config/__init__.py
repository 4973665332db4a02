"""Every flag of training: declared, read from the command line and YAML files, and checked."""

from dpdmd.config.parser import Config, build_parser, from_dict, parse, read_yaml, validate, write_yaml

__all__ = ["Config", "build_parser", "from_dict", "parse", "read_yaml", "validate", "write_yaml"]
