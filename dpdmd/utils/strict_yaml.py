"""YAML files without duplicate keys and with plain numbers alone.

PyYAML keeps the last of two equal keys. It reads 0123456, which may be a commit, as octal, and 1:30 as 90.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dpdmd.utils.text_files import read_text

_PLAIN_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        """Return the tag of a node. Digits that are no plain decimal number, such as 010 and 1:30, stay text."""
        tag = super().resolve(kind, value, implicit)
        name = tag.rpartition(":")[2]
        other = (name == "int" and not _PLAIN_INTEGER.fullmatch(value)) or (name == "float" and ":" in value)
        return self.DEFAULT_SCALAR_TAG if other else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # rejected by the call below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # 2026-13-45 matches PyYAML's pattern of a date, and Python's date raises.
            shown = repr(node.value)[:60] if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.constructor.ConstructorError(
                problem=f"{shown} is no {node.tag.rpartition(':')[2]} (put a text in quotes)",
                problem_mark=node.start_mark,
            ) from None


def read(path: Path, place: str) -> Any:
    """Read the plain values of a file. A number in another form than the decimal one stays the text that it is.

    Raises:
        ValueError: unreadable, not YAML, a tag that is not of a plain type, an invalid value such as 2026-13-45, or a
            duplicate key; one line that begins with `place`.
    """
    try:
        return yaml.load(read_text(path), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (yaml.YAMLError, OverflowError, ValueError) as error:  # ValueError: an invalid character
        raise ValueError(f"{place}: no YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise ValueError(f"{place}: no YAML (nested too deeply)") from None
