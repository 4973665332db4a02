"""YAML files without duplicate keys: PyYAML keeps the last of them and drops the others."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dpdmd.utils.text_files import read_text


class _Loader(yaml.SafeLoader):
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
    """Read the plain values of a file.

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
