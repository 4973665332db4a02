"""The order of the package, read from its source: who imports whom, who may name a family, a method or diffusers."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpdmd.config.options import METHODS
from dpdmd.models.registry import LAYOUTS

ROOT = Path(__file__).parents[2]

# Data flows down: a module imports only from those above it. First what knows no model (configuration, draws, paths,
# prompts, arithmetic), then the families, what is built of them, what writes and runs, then the small world, which is a
# user of the package, and last what runs all of these as programs. `dpdmd` itself (the version) and `config` are for
# all.
ORDER = (
    "dpdmd",
    "dpdmd.utils.signals",
    "dpdmd.utils.atomic_files",
    "dpdmd.config.presets",
    "dpdmd.config.options",
    "dpdmd.config.validation",
    "dpdmd.utils.text_files",
    "dpdmd.utils.paths",
    "dpdmd.distributed.launch_env",
    "dpdmd.utils.strict_yaml",
    "dpdmd.run_folder",
    "dpdmd.config",
    "dpdmd.methods.update_schedule",
    "dpdmd.training.lr_schedules",
    "dpdmd.utils.device_transfer",
    "dpdmd.utils.out_of_memory",
    "dpdmd.config.sampling_flags",
    "dpdmd.utils.rng",
    "dpdmd.utils.tables",
    "dpdmd.records",
    "dpdmd.training.nonfinite",
    "dpdmd.data.prompts",
    "dpdmd.models.noise_schedule",
    "dpdmd.sampling.rollout",
    "dpdmd.methods.losses",
    "dpdmd.models.weight_files",
    "dpdmd.models.checks.transformers_parts",
    "dpdmd.utils.manifest",
    "dpdmd.models.sampling_defaults",
    "dpdmd.models.scheduler_config",
    "dpdmd.models.activation_memory",
    "dpdmd.models.layout",
    "dpdmd.models.checks.folder",
    "dpdmd.models.lora_config",
    "dpdmd.models.base",
    "dpdmd.models.lora",
    "dpdmd.methods.discriminator",
    "dpdmd.models.common",
    "dpdmd.models.checks.weights",
    "dpdmd.models.sd35.family",
    "dpdmd.models.sdxl.family",
    "dpdmd.models",
    "dpdmd.data.cache_files",
    "dpdmd.data.text_embedding_cache",
    "dpdmd.data.teacher_sample_cache",
    "dpdmd.models.streamed_text_encoder",
    "dpdmd.models.compilation",
    "dpdmd.methods.networks",
    "dpdmd.methods.context",
    "dpdmd.methods.loss_terms",
    "dpdmd.methods.registry",
    "dpdmd.utils.image_grid",
    "dpdmd.sampling.sampler",
    "dpdmd.training.optimizers",
    "dpdmd.distributed.collectives",
    "dpdmd.training.ema",
    "dpdmd.training.checkpoint",
    "dpdmd.evaluation",
    "dpdmd.evaluation.scorer_files",
    "dpdmd.evaluation.scorers.base",
    "dpdmd.evaluation.scorers.clip",
    "dpdmd.evaluation.scorers.dino",
    "dpdmd.evaluation.scorers.pickscore",
    "dpdmd.evaluation.scorers.imagereward",
    "dpdmd.evaluation.scorers.maniqa",
    "dpdmd.evaluation.scorers.visualquality",
    "dpdmd.evaluation.scorers",
    "dpdmd.methods.perceptual",
    "dpdmd.evaluation.scorer_checks",
    "dpdmd.evaluation.in_loop_setup",
    "dpdmd.sampling.image_folder",
    "dpdmd.evaluation.seed_grids",
    "dpdmd.training.memory_items",
    "dpdmd.training.memory_estimate",
    "dpdmd.training.preflight",
    "dpdmd.training.run_log",
    "dpdmd.evaluation.diversity",
    "dpdmd.evaluation.statistics",
    "dpdmd.evaluation.scoring",
    "dpdmd.evaluation.in_loop",
    "dpdmd.evaluation.program_job",
    "dpdmd.evaluation.program_run",
    "dpdmd.evaluation.program",
    "dpdmd.training.build",
    "dpdmd.training.batches",
    "dpdmd.training.step_record",
    "dpdmd.training.step",
    "dpdmd.training.checkpoint_writer",
    "dpdmd.training.checkpointer",
    "dpdmd.report",
    "dpdmd.report.scores",
    "dpdmd.report.measured",
    "dpdmd.report.runs",
    "dpdmd.report.style",
    "dpdmd.report.figures",
    "dpdmd.report.tables",
    "dpdmd.report.page",
    "dpdmd.report",
    "dpdmd.training.trainer",
    "dpdmd.train",
    "dpdmd.training.doctor_checks",
    "dpdmd.doctor",
    "dpdmd.sampling.geneval",
    "dpdmd.sampling.generation",
    "dpdmd.generate",
    "dpdmd.export",
    "dpdmd.shapes",
    "dpdmd.shapes.world",
    "dpdmd.shapes.pairs",
    "dpdmd.shapes.oracle",
    "dpdmd.shapes.pair_oracle",
    "dpdmd.shapes.categories",
    "dpdmd.shapes.text",
    "dpdmd.shapes.autoencoder",
    "dpdmd.shapes.scorer_models",
    "dpdmd.shapes.scorers",
    "dpdmd.shapes.teacher",
    "dpdmd.shapes.build",
    "dpdmd.shapes.measure",
    "dpdmd.shapes.measure_scorers",
    "dpdmd.compare",
    "dpdmd.compare.sweep",
    "dpdmd.compare.sweep_file",
    "dpdmd.compare.jobs",
    "dpdmd.compare.measure_commands",
    "dpdmd.compare.preflight",
    "dpdmd.compare.figures",
    "dpdmd.compare.tables",
    "dpdmd.compare.sample_grid",
    "dpdmd.compare.plane",
    "dpdmd.compare.results",
    "dpdmd.compare",
)
ROOT_PROGRAMS = {"test_preference.py", "test_quality.py", "test_diversity.py"}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module(path): path for path in sorted((ROOT / "dpdmd").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports(tree: ast.AST, known: set[str]) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, also inside functions; `from package import module` counts as that module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield (f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base), node.lineno


def out_of_order(name: str, tree: ast.AST, order: tuple[str, ...]) -> list[str]:
    """Imports of the package that do not lie above `name`; relative ones too, since they hide where they point."""
    above = set(order[: order.index(name)])
    return [
        f"{name}:{line} imports {target}"
        for target, line in imports(tree, set(order))
        if target.startswith(("dpdmd", ".")) and target not in above
    ]


def _constants(node: ast.AST) -> set[str]:
    """Strings below `node`."""
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def _last_name(node: ast.AST) -> str:
    """`method` of `config.method.method`, of `method` and of `config["method"]`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.id if isinstance(node, ast.Name) else ""


def decisions_by(tree: ast.AST, subject: str, values: set[str]) -> list[int]:
    """Lines that compare or match against one of `values`, or compare something called `subject` with any string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            strings = set().union(*map(_constants, operands))
            if strings & values or (strings and any(_last_name(operand) == subject for operand in operands)):
                found.append(node.lineno)
        elif isinstance(node, ast.Match):
            strings = set().union(*(_constants(case.pattern) for case in node.cases))
            if strings & values or _last_name(node.subject) == subject:
                found.append(node.lineno)
    return sorted(found)


def loose_prints(tree: ast.AST) -> list[int]:
    """Lines of `print(` that are not a program's main writing to stderr."""
    allowed = {
        id(call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "main"
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and any(word.arg == "file" and ast.unparse(word.value) == "sys.stderr" for word in call.keywords)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _last_name(node.func) == "print"]
    return [call.lineno for call in calls if id(call) not in allowed]


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not what its functions import when called."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from (name for name, _ in imports(node, set(SOURCES)))


def import_closure(name: str) -> set[str]:
    """Everything that `import name` brings in, its parent packages included, as far as our own source tells."""
    seen, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in TREES:
            parent = current.rpartition(".")[0]
            waiting += [*top_level_imports(TREES[current]), *([parent] if parent else [])]
    return seen


def test_every_module_has_its_place():
    """A new module must be given a place in the order, or nothing holds its imports."""
    assert len(set(ORDER)) == len(ORDER)
    assert sorted(SOURCES.keys() - set(ORDER)) == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_from_those_above_it(name):
    """Imports that run against the flow of data end in cycles, and in losses that know ranks."""
    assert out_of_order(name, TREES[name], ORDER) == []


def test_only_families_decide_by_family():
    """No `if family ==` elsewhere: a new family would have to be found in every file."""
    found = {
        name: decisions_by(tree, "family", set(LAYOUTS))
        for name, tree in TREES.items()
        if not name.startswith("dpdmd.models")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_second_family_is_a_word_of_families_alone():
    """The rest of the package does not learn that it exists; its option and its defaults are a row among those."""
    added = [name for name in LAYOUTS if name != "sd35"]
    sources = {name: path.read_text(encoding="utf-8").lower() for name, path in SOURCES.items()}
    found = {name for name, text in sources.items() for family in added if family in text}
    assert added and {name for name in found if not name.startswith("dpdmd.models")} == {"dpdmd.config.presets"}


def test_only_methods_decide_by_method():
    """No `if method ==` elsewhere: a method is a row of METHODS. The options may be checked against it."""
    found = {
        name: decisions_by(tree, "method", set(METHODS))
        for name, tree in TREES.items()
        if name not in ("dpdmd.methods.registry", "dpdmd.config.validation")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_only_families_and_the_small_world_import_diffusers():
    """Generators enter through a family; everything else works with any network."""
    offenders = [
        f"{name}:{line}"
        for name, tree in TREES.items()
        if not name.startswith(("dpdmd.models", "dpdmd.shapes"))
        for target, line in imports(tree, set())
        if target.split(".")[0] == "diffusers"
    ]
    assert offenders == []
    assert any(target == "diffusers" for target, _ in imports(TREES["dpdmd.models.sd35.family"], set()))


def test_wrong_input_is_told_before_the_heavy_imports():
    """Starting `dpdmd.train` loads no model library, and reading its flags not even torch: both take seconds."""
    heavy = {"diffusers", "transformers", "accelerate"}
    roots = {target.split(".")[0] for target in import_closure("dpdmd.train")}
    assert roots & heavy == set()
    for name in (
        "dpdmd.config",
        "dpdmd.generate",
        "dpdmd.export",
        "dpdmd.config.sampling_flags",
        "dpdmd.utils.paths",
        "dpdmd.distributed.launch_env",
    ):
        assert {target.split(".")[0] for target in import_closure(name)} & {*heavy, "torch"} == set()
    assert "torch" in roots and "accelerate" in {
        t.split(".")[0] for t in import_closure("dpdmd.training.trainer")
    }  # it can see


def test_a_module_with_a_main_runs_it():
    """`python -m dpdmd.generate` once did nothing, with status 0: the last two lines had been lost."""
    programs = {
        name: ast.unparse(tree.body[-1]).splitlines()
        for name, tree in TREES.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }
    assert len(programs) >= 8
    assert {
        name: last
        for name, last in programs.items()
        if last[0] != "if __name__ == '__main__':" or "main()" not in last[1]
    } == {}


def test_nothing_prints():
    """Logging on rank 0 only: a print in the package would come once a process and miss log.txt."""
    found = {name: loose_prints(tree) for name, tree in TREES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_tests_do_not_take_the_names_of_root_programs():
    """The root's test_*.py are programs: a test of the same name would be shadowed by one, or imported in its place."""
    programs = ROOT_PROGRAMS | {path.name for path in ROOT.glob("*.py")}
    assert sorted(programs & {path.name for path in Path(__file__).parent.iterdir()}) == []


def test_these_checks_see_what_they_look_for():
    """A checker that finds nothing anywhere would pass for ever."""
    order = ("dpdmd", "dpdmd.low", "dpdmd.high")
    low = ast.parse(
        "from dpdmd.high import f\nfrom dpdmd import high\nimport dpdmd.high\nfrom . import x\nimport torch"
    )
    places = [line.split()[0] for line in out_of_order("dpdmd.low", low, order)]
    assert places == ["dpdmd.low:1", "dpdmd.low:2", "dpdmd.low:3", "dpdmd.low:4"]
    lazy = ast.parse("def f():\n    from dpdmd.high import g")
    assert out_of_order("dpdmd.low", lazy, order) == ["dpdmd.low:2 imports dpdmd.high"]
    assert out_of_order("dpdmd.high", ast.parse("from dpdmd.low import f\nfrom dpdmd import __version__"), order) == []
    decides = ast.parse(
        textwrap.dedent(
            """
            if config.method.method == "x": pass
            if name in ("dmd", "other"): pass
            if values["method"] != "x": pass
            match kind:
                case "dmd": pass
            if method is None: pass
            if other == "x": pass
            row = TABLE[config.method.method]
            """
        )
    )
    assert decisions_by(decides, "method", {"dmd"}) == [2, 3, 4, 5]
    prints = ast.parse(
        "print(1)\ndef f():\n    print(1, file=sys.stderr)\ndef main():\n    print(1)\n    print(1, file=sys.stderr)"
    )
    assert sorted(loose_prints(prints)) == [1, 3, 5]
