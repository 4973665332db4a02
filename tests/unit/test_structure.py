"""The rules of the package that are read from its source; pyproject.toml has the contracts of import-linter."""

import ast
import textwrap
from pathlib import Path

from importlinter import configuration
from importlinter.application import use_cases

from dpdmd.config.method_table import METHODS
from dpdmd.models.registry import LAYOUTS

ROOT = Path(__file__).parents[2]


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module_name(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / "dpdmd").rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def string_constants(node: ast.AST) -> set[str]:
    """Return the strings in `node`."""
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def last_name(node: ast.AST) -> str:
    """Return `method` for `config.method.method`, for `method` and for `config["method"]`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.id if isinstance(node, ast.Name) else ""


def find_decisions(tree: ast.AST, subject: str, values: set[str]) -> list[int]:
    """Return the lines that compare or match with one of `values`, or the name `subject` with any string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            strings = set().union(*map(string_constants, operands))
            if strings & values or (strings and any(last_name(operand) == subject for operand in operands)):
                found.append(node.lineno)
        elif isinstance(node, ast.Match):
            strings = set().union(*(string_constants(case.pattern) for case in node.cases))
            if strings & values or last_name(node.subject) == subject:
                found.append(node.lineno)
    return sorted(found)


def find_prints(tree: ast.AST) -> list[int]:
    """Return the lines of all `print` calls, except those that a function `main` sends to stderr."""
    mains = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "main"]
    calls = {main: [node for node in ast.walk(main) if isinstance(node, ast.Call)] for main in (tree, *mains)}
    allowed = {call for main in mains for call in calls[main] if "file=sys.stderr" in map(ast.unparse, call.keywords)}
    return sorted(call.lineno for call in calls[tree] if last_name(call.func) == "print" and call not in allowed)


def test_the_contracts_of_import_linter_hold():
    """Imports point from upper rooms to lower rooms, and only families and the small world import diffusers."""
    configuration.configure()
    assert use_cases.lint_imports(str(ROOT / "pyproject.toml"), cache_dir=None, no_logo=True)


def test_only_families_decide_by_family():
    """No code outside `models` compares a family's name, so a new family needs no change there."""
    outside = {name: tree for name, tree in TREES.items() if not name.startswith("dpdmd.models")}
    found = {name: find_decisions(tree, "family", set(LAYOUTS)) for name, tree in outside.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_only_methods_decide_by_method():
    """No `if method ==` anywhere: a method is a row of METHODS."""
    found = {name: find_decisions(tree, "method", set(METHODS)) for name, tree in TREES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_module_with_a_main_runs_it():
    """Without its last two lines, `python -m` of a module would do nothing, with status 0."""
    last = {
        name: ast.unparse(tree.body[-1]).splitlines()
        for name, tree in TREES.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }
    assert len(last) >= 8
    runs = {name for name, lines in last.items() if lines[0] == "if __name__ == '__main__':" and "main()" in lines[1]}
    assert last.keys() - runs == set()


def test_nothing_prints():
    """The package logs on rank 0: a print would appear once per process and be missing in log.txt."""
    found = {name: find_prints(tree) for name, tree in TREES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_test_has_the_name_of_a_root_program():
    """The root's test_*.py are programs, which pytest must not take for tests."""
    programs = {path.name for path in ROOT.glob("test_*.py")}
    assert programs and programs.isdisjoint(path.name for path in (ROOT / "tests").rglob("*.py"))


def test_the_checks_find_what_they_look_for():
    decisions = """
        if config.method.method == "x": pass
        if name in ("dmd", "other"): pass
        if values["method"] != "x": pass
        match kind:
            case "dmd": pass
        if method is None: pass
        if other == "x": pass
        row = TABLE[config.method.method]
        """
    assert find_decisions(ast.parse(textwrap.dedent(decisions)), "method", {"dmd"}) == [2, 3, 4, 5]
    prints = (
        "print(1)\ndef f():\n    print(1, file=sys.stderr)\ndef main():\n    print(1)\n    print(1, file=sys.stderr)"
    )
    assert find_prints(ast.parse(prints)) == [1, 3, 5]
