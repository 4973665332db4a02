"""The documents: commands run or fit their programs, links and paths lead somewhere, numbers are those measured.

Commands that need neither a GPU nor official weights run on the small world, made short; of all others the files,
modules, flags and values are checked by the programs' own parsers.
"""

import ast
import csv
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import document_commands as documents
import pytest
import torch
from document_commands import ROOT, Command
from processes import LAUNCHER, cpu_environment, free_port

from dpdmd import config, train
from dpdmd.compare.cost import calls_of_training
from dpdmd.compare.sweep_file import read_sweep
from dpdmd.config.precisions import INT8, NF4, UNQUANTIZED
from dpdmd.config.presets import PRESETS
from dpdmd.config.variants import SD3_MEDIUM, SD35_LARGE
from dpdmd.data.prompt_files import read_prompts
from dpdmd.evaluation.in_loop_setup import EvalSetup, ImageSet
from dpdmd.find_anchor import __main__ as find_anchor
from dpdmd.models.base import Family
from dpdmd.models.hollow import write_hollow
from dpdmd.models.registry import LAYOUTS
from dpdmd.sampling.load_model import load_sampler
from dpdmd.training.memory_estimate import MemoryEstimate, estimate_memory
from dpdmd.training.memory_items import Topology

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / name for name in ("data/README.md", "weights/tiny/README.md", "scripts/run_geneval.md")]
ROOMS = sorted((ROOT / "dpdmd").rglob("README.md"))
MEMORY = ROOT / "docs" / "memory.md"
ALL = [README, *DOCS, *OTHERS, *ROOMS]
# Added to a command, where the last of a flag counts: one small update of each network, one image.
SHORT = {
    "dpdmd.train": (
        *("--per_train_fake_num", "1", "--fake_rollout_reuse", "1", "--teacher_infer_steps", "2", "--k_anchor", "2"),
        *(
            "--anchor_steps",
            "1",
            "--batch_size",
            "1",
            "--eval_prompts_limit",
            "1",
            "--num_div_seeds",
            "2",
            "--vis_every",
            "1",
        ),
    ),
    "dpdmd.generate": ("--num_images", "1"),
    "dpdmd.shapes.measure": ("--num_seeds", "1", "--steps", "2"),
    "test_diversity.py": ("--num_samples", "2"),
}
SHORT["dpdmd.doctor"] = SHORT["dpdmd.train"]
SHORT["dpdmd.find_anchor"] = ("--num_prompts", "1", "--num_seeds", "2", *SHORT["dpdmd.train"])
STEPS = 2
# What a command line that cannot run here names: presets of GPUs, official weights, what was trained with them, sweeps.
ELSEWHERE = re.compile(
    r"--help|--preset|weights/(?!tiny)|\.pt\b|sd35_lora|outputs/(sd35|release|lora|table)|sweeps/|benchmarks/|RUN\b"
    r"|--push_to_hub"
)


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path) -> Path:
    """A folder with the checkout's data in which the commands run; those of README and training.md have run."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("data", "scripts", "weights", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    with chdir(folder):
        for document in (README, ROOT / "docs" / "training.md"):
            for command in printed(document):
                run(command, folder)
        sdxl = ["--family", "sdxl", "--teacher_id", str(tiny_sdxl), "--run_dir", "outputs/sdxl", "--height", "64"]
        sdxl += ["--width", "64", "--prompt_txt", "my_prompts.txt", "--max_steps", "2", "--report_to", "none"]
        assert train.main([*sdxl, *SHORT["dpdmd.train"]]) == 0
    (folder / "outputs" / "tiny").mkdir()
    for name in ("dpdmd", "pairs"):  # in place of the runs of run_train_tiny.sh, which is not run here
        (folder / "outputs" / "tiny" / name).symlink_to(folder / "outputs" / "mine")
    return folder


def printed(document: Path) -> list[Command]:
    """Return the commands of a document's shell blocks."""
    shell = [block for block in documents.blocks(document) if block.language == "bash"]
    return [command for block in shell for command in documents.commands(block.text)]


def runs_here(command: Command) -> bool:
    """Return whether a command needs neither a GPU nor official weights nor a package's installation."""
    name, *words = command.words
    if name == "torchrun":
        return True
    ours = name == "python" and not {"dpdmd.export", "dpdmd.report", *SHORT}.isdisjoint(words[:2])
    return name == "printf" or ((ours or words[0] == "test_preference.py") and not ELSEWHERE.search(command.text))


def run(command: Command, folder: Path) -> None:
    """Run a command in the folder, shortened; one that ran before is not run again."""
    done = folder / "commands.txt"
    if not runs_here(command) or (done.exists() and command.text in done.read_text()):
        return
    name, *words = command.words
    if name == "torchrun":
        launch = [sys.executable, "-m", *LAUNCHER, "--master_port", free_port(), *words, *SHORT["dpdmd.train"]]
        environment = cpu_environment() | command.variables
        done_ = subprocess.run(
            [*launch, "--max_steps", str(STEPS)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done_.returncode == 0, done_.stderr[-2000:]
    elif name == "printf":
        subprocess.run(["bash", "-c", command.text], cwd=folder, check=True)
    else:
        program = words[1] if words[0] == "-m" else words[0]
        arguments = [*words[2 if words[0] == "-m" else 1 :], *SHORT.get(program, ())]
        if program == "dpdmd.train":
            wanted = int(arguments[arguments.index("--max_steps") + 1]) if "--max_steps" in arguments else 60
            arguments += ["--max_steps", str(wanted * STEPS // 60)]
        with chdir(folder):
            assert documents.program_of(words)(arguments) == 0, command.text
    with done.open("a") as file:
        file.write(f"{command.text}\n")


@pytest.mark.parametrize("document", [README, *DOCS, *OTHERS], ids=name_of)
def test_commands_run_or_fit_their_programs(document: Path, world: Path):
    for command in [*printed(document), *documents.inline_commands(document)]:
        try:
            documents.check(command)
            run(command, world)
        except AssertionError as error:
            raise AssertionError(f"{document.name}: {command.text}: {error}") from error


def test_what_the_readme_prints_has_run(world: Path):
    """The lines for one's own prompts, and all that use their result."""
    ran = (world / "commands.txt").read_text()
    for program in ("dpdmd.train", "dpdmd.generate", "dpdmd.export", "dpdmd.report", "test_diversity.py", "printf"):
        assert any(program in command.text and command.text in ran for command in printed(README)), program
    assert (world / "outputs/mine/report.html").is_file() and (world / "outputs/mine/process_vis/latest.png").is_file()
    assert '"processes": 2' in (world / "outputs/two/environment.json").read_text()
    assert read_prompts(world / "prompts.csv") == ["a red circle, large", "a blue square"]
    assert (world / "outputs/csv/report.html").is_file()


# Python


def execute(text: str, document: Path, world: Path, namespace: dict | None = None) -> dict:
    """Execute a block in the world; returns its names."""
    namespace = {} if namespace is None else namespace
    with chdir(world):
        exec(compile(text, document.name, "exec"), namespace)
    return namespace


def samples_as(namespace: dict, model: Path) -> bool:
    """Return whether the block's pipeline stepped through the sigmas on which this package samples the model."""
    ours = load_sampler(model, torch.device("cpu"))[0].settings.sigmas
    theirs = namespace["pipe"].scheduler.sigmas
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "run_of", ["mine/ckpts/latest/student", "mine_lora/ckpts/latest/lora", "default_grid/ckpts/latest/student"]
)
def test_the_readmes_snippet_samples_on_the_students_grid(world: Path, run_of: str):
    (block,) = [block for block in documents.blocks(README) if block.language == "python"]
    text = block.text.replace("mine/ckpts/latest/student", run_of)
    namespace = execute(text, README, world)
    assert samples_as(namespace, world / "outputs" / run_of)
    assert namespace["image"].size == (64, 64) and (world / "red_circle.png").is_file()
    if run_of.endswith("lora"):  # what the document warns of
        without = re.sub(r"\n +pipe\.scheduler = .*", "", text)
        assert without != text and not samples_as(execute(without, README, world), world / "outputs" / run_of)


def test_the_blocks_of_export_sample_on_the_students_grid(world: Path):
    document, namespace = ROOT / "docs" / "export.md", {}
    blocks = [block for block in documents.blocks(document) if block.language == "python"]
    assert len(blocks) == 4
    for block in blocks:
        execute(block.text, document, world, namespace)
        (model,) = set(re.findall(r'"(outputs/[\w/]+)"', block.text))
        assert samples_as(namespace, world / model), block.place


def test_every_block_is_of_a_kind_that_is_tested():
    known = {"bash", "python", "yaml", "text", "bibtex", ""}
    tested = {README, ROOT / "docs" / "export.md", ROOT / "docs" / "architecture.md"}
    for block in (block for document in ALL for block in documents.blocks(document)):
        assert block.language in known, block.place
        assert block.language != "python" or block.document in tested, block.place
        assert block.language or block.document.parts[-2] == "tiny", block.place  # what a program printed


def test_configuration_files_of_the_documents_are_read(tmp_path: Path):
    from dpdmd.compare.sweep_file import read_sweep

    for block in (block for document in ALL for block in documents.blocks(document) if block.language == "yaml"):
        path = tmp_path / "given.yaml"
        path.write_text(block.text)
        with chdir(ROOT):
            read_sweep(path) if "configurations:" in block.text else config.read_yaml(path)


# Links, paths, flags, messages


def slug(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_links_lead_somewhere(document: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", documents.prose(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def named_paths(document: Path) -> Iterator[str]:
    """Yield what a document's inline code names of the checkout: paths, files, tests, modules."""
    ignored = (ROOT / ".gitignore").read_text().split()
    top = {path.name for path in ROOT.iterdir()} - {"outputs", "weights"}
    for text in documents.INLINE.findall(documents.prose(document)):
        if not re.fullmatch(r"[\w./*:-]+", text) or text in ignored:
            continue
        first, slash, _ = text.partition("/")
        is_path = (slash and first in top) or text.startswith("weights/tiny")
        is_module = re.fullmatch(r"dpdmd(\.[a-z_]+)+", text) and text != "dpdmd.json"
        is_file = re.fullmatch(r"[\w./]+\.(py|sh)" if document in ROOMS else r"[\w.]+\.(py|sh)", text)
        if is_path or is_module or is_file:
            yield text


@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_paths_and_modules_exist(document: Path):
    for name in named_paths(document):
        path, _, test = name.partition("::")
        if name.startswith("dpdmd."):
            assert importlib.util.find_spec(name), name
            continue
        found = sorted(ROOT.glob(path.rstrip("/")))
        if document in ROOMS:
            found = [file for file in document.parent.rglob("*.py") if str(file).endswith(f"/{path}")] or found
        elif "/" not in path:
            found += [file for room in ("scripts", "dpdmd") for file in (ROOT / room).rglob(path)]
        assert found, name
        assert not test or f"def {test}(" in found[0].read_text(), name


def test_flags_exist():
    programs = [
        ("-m", f"dpdmd.{name}") for name in ("train", "generate", "export", "doctor", "report", "compare", "demo")
    ]
    programs += [("-m", f"dpdmd.shapes.{name}") for name in ("build", "measure", "measure_scorers")]
    programs += [(path.name,) for path in ROOT.glob("test_*.py")] + [("benchmarks/time_to_result.py",)]
    known = {"--fix", "--cpu", "--config_file", "--machine_rank", "--main_process_ip", "--num_processes", "--logdir"}
    for program in programs:
        main = documents.program_of(program)
        known |= documents.fits(lambda main=main: main([]), read=False)
    known |= find_anchor.build_parser()._option_string_actions.keys()  # beside those of dpdmd.train
    for document in ALL:
        for text in documents.INLINE.findall(documents.prose(document)):
            flags = set(re.findall(r"(?<!\S)--[a-z][\w-]*", text))
            assert flags <= known, f"{document.name}: {flags - known}"


def test_messages_that_are_explained_exist():
    """Each message of the table is a text of the package; torch's own is the exception."""
    texts = set()
    for path in (ROOT / "dpdmd").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    table = documents.prose(ROOT / "docs" / "troubleshooting.md")
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    quoted = [message for row in rows if "no message" not in row for message in documents.INLINE.findall(row)]
    assert len(rows) >= 15 and len(quoted) >= 15
    missing = [message for message in quoted if not any(message in text for text in texts)]
    assert missing == ["operator torchvision::nms does not exist"]


# Numbers


def rows_of(document: Path, *starts: str) -> list[list[str]]:
    """Return the cells of a document's table rows that begin with one of `starts`, in its order."""
    lines = (line.strip("| \n").split("|") for line in documents.prose(document).splitlines() if line.startswith("| "))
    cells = [[cell.replace("*", "").strip() for cell in line] for line in lines]
    return [row for row in cells if row[0] in starts]


def result(name: str) -> dict[tuple[str, str], tuple[float, float | None]]:
    """Return (configuration, metric) -> mean and margin of a recorded sweep."""
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open() as file:
        return {
            (row["configuration"], row["metric"]): (float(row["mean"]), float(row["margin"]) if row["margin"] else None)
            for row in csv.DictReader(file)
        }


def shown(mean: float, margin: float | None) -> tuple[str, str]:
    """Return a result with its margin and without, as the tables write it."""
    text = f"{mean:.3f}".removeprefix("0")
    return text, text if margin is None else f"{text} ± {margin:.3f}".replace("± 0", "± ")


METHODS = {
    "teacher, guidance 3.5": "teacher",
    "DMD": "dmd",
    "DP-DMD, the paper's way": "dpdmd",
    "DP-DMD, `tiny.yaml`": "dpdmd_tiny",
}
TABLE_1 = {  # configuration -> the beginnings of its rows in README and docs/small_world.md
    "teacher": ("teacher, guidance 3.5, 30 steps", "the teacher, guidance 3.5, 30 steps"),
    "dmd": ("DMD, the paper's way",) * 2,
    "dmd_falling": ("DMD, falling learning rate", "DMD, falling rate"),
    "dmd_lpips": ("DMD-LPIPS (with the small world's DINO), tuned", "DMD-LPIPS, tuned"),
    "dmd_gan": ("DMD-GAN, tuned", "DMD-GAN, tuned"),
    "dpdmd": ("DP-DMD, the paper's way",) * 2,
    "dpdmd_tiny": ("DP-DMD, `scripts/configs/tiny.yaml` (falling rate)", "DP-DMD, `tiny.yaml`"),
}


@pytest.mark.parametrize(("place", "document"), [(0, README), (1, ROOT / "docs" / "small_world.md")])
def test_table_1_is_what_was_measured(monkeypatch, place, document):
    table = result("2026-11-30_table1_tiny")
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(ROOT / "scripts" / "sweeps" / "table1_tiny.yaml")
    named = dict(zip(TABLE_1, (names[place] for names in TABLE_1.values()), strict=True))
    for name, row in zip(TABLE_1, rows_of(document, *named.values())[:7], strict=True):
        assert row[0] == named[name]
        cells = [shown(*table[name, column])[1] for column in ("accuracy", "entropy", "spread")]
        mean = float(cells[1][:4])
        cells.insert(2, f"{mean / table['teacher', 'entropy'][0]:.0%}")
        assert row[2:] == cells[: len(row) - 2]
        of_all = calls_of_training(sweep.configurations[name].resolved) if name != "teacher" else None
        assert row[1] == (f"{of_all // 8:,}" if of_all else "")


def test_ablations_are_those_that_were_measured():
    document = ROOT / "docs" / "small_world.md"
    (steps,), (entropies,) = (rows_of(document, name) for name in ("K", "entropy"))
    found = result("2026-11-24_table3_tiny")
    assert entropies[1:] == [shown(*found[f"k_{k}", "entropy"])[0] for k in steps[1:]]
    pairs = result("2026-11-30_geneval_tiny")
    columns = (
        "single_attribute",
        "colour_shape",
        "two_attributes",
        "two_objects",
        "colour_binding",
        "position",
        "entropy",
    )
    for row in [row for row in rows_of(document, *METHODS) if len(row) == 9]:
        assert row[2:] == [shown(*pairs[METHODS[row[0]], column])[1] for column in columns]
    weights = result("2026-11-24_table4_tiny")
    text = ", ".join(shown(*weights[f"lambda_{value}", "entropy"])[0] for value in (1, 5, 8, 10))
    assert text in " ".join(documents.prose(document).split())


def test_the_trainings_beside_decidedness_are_those_that_were_measured():
    one, two = (result(f"2026-11-30_{name}") for name in ("anchor_tiny", "anchor_pairs_tiny"))
    wanted = [
        ("students' entropy (teacher .846)", one, "entropy"),
        ("students' accuracy", one, "accuracy"),
        ("students' spread (teacher .884)", one, "spread"),
        ("students' entropy (teacher .861)", two, "entropy"),
        ("students' accuracy", two, "accuracy"),
        ("students' spread (teacher .811)", two, "spread"),
    ]
    rows = rows_of(ROOT / "docs" / "anchor.md", *{name for name, *_ in wanted})
    for (name, *cells), (expected, found, metric) in zip(rows, wanted, strict=True):
        assert name == expected
        assert cells[:5] == [shown(*found[f"k_{k}", metric])[0] for k in (1, 5, 10, 20, 30)]


SCRIPT = ("--bf16", "--gradient_checkpointing", "--batch_size", "4")  # of run_train_sd35.sh
CACHE = ("--cache_text_embeddings", "outputs/text_cache")
SETUPS = {  # row -> flags, processes, sharded
    **{
        f"`--preset {name}`": (("--preset", name), preset.devices, preset.devices > 1)
        for name, preset in PRESETS.items()
    },
    "`scripts/run_train_sd35.sh` on one GPU": (SCRIPT, 1, False),
    "`scripts/run_train_sd35.sh`": (SCRIPT, 8, True),
    "the same with `--cache_text_embeddings outputs/text_cache`": ((*SCRIPT, *CACHE), 8, True),
    "the same with `--shard_teacher --offload_scorers`": (
        ("--preset", "8gpu", "--shard_teacher", "--offload_scorers"),
        8,
        True,
    ),
    "`scripts/run_train_sd35.sh` under DDP (`scripts/accelerate_ddp.yaml`)": (SCRIPT, 8, False),
    "`scripts/slurm_train_sd35.sh`": ((*SCRIPT, "--batch_size", "2"), 16, True),
}


def estimated(medium: Path, flags: tuple[str, ...], processes: int, sharded: bool, scorers: float) -> MemoryEstimate:
    """Return the estimate of a setup beside `scorers` GB of scorers."""
    scored = EvalSetup([], {}, "")
    if scorers:
        weights = medium.parent / f"{scorers}.pt"
        with weights.open("wb") as file:
            file.truncate(int(scorers * 1e9))
        scored = EvalSetup(
            [ImageSet("set", ["a"], 9, ("imagereward",))], {"imagereward": {"ir_model_path": weights}}, ""
        )
    chosen = config.parse(["--teacher_id", str(medium), *flags])
    return estimate_memory(chosen, scored, Topology(processes, sharded))


def test_the_memory_of_every_setup_is_what_the_estimate_says(medium):
    rows = {row[0].partition(":")[0]: row[1:] for row in rows_under(MEMORY, "| setup |")}
    assert rows.keys() == SETUPS.keys()
    for name, (flags, processes, sharded) in SETUPS.items():
        scorers = 4.05 if "12gb" in name or "16gb" in name else 8.0
        found = [estimated(medium, flags, processes, sharded, size).total for size in (scorers, 0)]
        assert rows[name] == [str(processes), *(f"{total / 1e9:.1f}" for total in found)], name
    (readme,) = rows_of(README, "GB of each GPU")
    assert readme[1:] == [rows[name][1] for name in (*list(SETUPS)[:6], "`scripts/run_train_sd35.sh`")]


def test_the_rows_of_an_8_gpu_run_are_those_of_the_estimate(medium):
    lines = estimated(medium, SCRIPT, 8, True, 8.0).table().splitlines()
    sizes = {name: f"{float(size):.1f}" for size, name in re.findall(r"([\d.]+)  ([^:]+):", "\n".join(lines[1:]))}
    rows = rows_under(MEMORY, "| row |")
    listed = set()
    for name, size, _ in rows:
        both = re.fullmatch("student and fake score(, .*)", name)
        names = [f"student{both[1]}", f"fake score{both[1]}"] if both else [name]
        listed |= set(names)
        assert {sizes[each] for each in names} == {size.removeprefix("2 x ")} and bool(both) == ("x" in size), name
    assert {name for name, size in sizes.items() if float(size) >= 0.5} == listed


SHARDED = "--preset 8gpu --shard_teacher --batch_size 2 --grad_accum 2"
SHARDED_LORA = "--lora_rank 64 --bf16 --gradient_checkpointing --batch_size 1 --offload_vae " + " ".join(CACHE)
FAMILY_SETUPS = {  # row -> flags, processes; None: the settings of the family
    **{f"`--preset {name}`": (("--preset", name), preset.devices) for name, preset in PRESETS.items()},
    f"`{SHARDED}`": (tuple(SHARDED.split()), 8),
    f"`{SHARDED_LORA}`, FSDP2": (tuple(SHARDED_LORA.split()), 8),
    "`scripts/run_train.sh` of the model": (None, 8),
}


SCORED = "the smallest of these with scorers"
MODEL_COLUMNS = {  # column, also the name of its settings -> family, model of this family
    "sd35": ("sd35", ""),
    "sd35_large": ("sd35", SD35_LARGE),
    "sd3_medium": ("sd35", SD3_MEDIUM),
    "sdxl": ("sdxl", ""),
    "zimage": ("zimage", ""),
    "qwen_image": ("qwen_image", ""),
    "lumina2": ("lumina2", ""),
    "flux2_klein": ("flux2_klein", ""),
}


@pytest.mark.parametrize("model", MODEL_COLUMNS)
def test_the_memory_of_every_model_is_what_the_estimate_says(model, tmp_path):
    family, variant = MODEL_COLUMNS[model]
    folder = tmp_path / model
    write_hollow(LAYOUTS[family], folder, variant)
    rows = {row[0]: row[1:] for row in rows_under(MEMORY, "| one GPU, or 8 |")}
    own = ("--config", str(ROOT / "scripts" / "configs" / f"{model}.yaml"))

    def cell(flags: tuple[str, ...] | None, processes: int, scorers: float = 0) -> str:
        try:
            found = estimated(folder, ("--family", family, *(flags or own)), processes, processes > 1, scorers)
        except ValueError as error:
            assert "does not fit" in str(error)
            return "no"
        return f"{found.total / 1e9:.1f}"

    expected = {name: cells[list(MODEL_COLUMNS).index(model)] for name, cells in rows.items()}
    preset = next(name for name in PRESETS if expected[f"`--preset {name}`"] != "no")
    # Counting calls takes seconds a row, so two rows of a family without formulas are checked: LoRA and all weights.
    names = list(FAMILY_SETUPS) if family == "sd35" else [f"`--preset {preset}`", list(FAMILY_SETUPS)[-1]]
    found = {name: cell(*FAMILY_SETUPS[name]) for name in names}
    found[SCORED] = cell(("--preset", preset), 1, 4.05 if preset in ("12gb", "16gb") else 8.0)
    assert float(found[SCORED]) <= PRESETS[preset].gigabytes
    assert rows.keys() == {*FAMILY_SETUPS, SCORED}
    assert {name: expected[name] for name in found} == found
    layout, quantized = LAYOUTS[family], {row[0]: row[1:] for row in rows_under(MEMORY, "| network + text encoders |")}
    parts = ((layout.network,), layout.text_encoders(folder))
    sizes = [
        " + ".join(f"{layout.weight_bytes(folder, part, precision, 2).held / 1e9:.1f}" for part in parts)
        for precision in (UNQUANTIZED, INT8, NF4)
    ]
    assert quantized.get(f"`{model}`", sizes) == sizes and set(quantized) <= {f"`{name}`" for name in MODEL_COLUMNS}


def rows_under(document: Path, head: str) -> list[list[str]]:
    """Return the cells of the rows of a document's table whose head begins with `head`."""
    table = documents.prose(document).partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]


def test_every_room_is_in_the_table_of_rooms():
    rooms = {f"dpdmd/{path.name}/" for path in (ROOT / "dpdmd").iterdir() if (path / "__init__.py").is_file()}
    table = [row for row in rows_of_lines(ROOT / "docs" / "architecture.md", "| `dpdmd/")]
    assert rooms == {name for row in table for name in documents.INLINE.findall(row.split("|")[1]) if name[-1] == "/"}


def test_printed_lines_fit_the_page():
    long = [
        f"{block.place}: {line}"
        for block in (block for document in ALL for block in documents.blocks(document))
        for line in block.text.splitlines()
        if len(line) > 120
    ]
    assert long == []


def test_the_readme_is_short_and_leads_to_every_document():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    for document in (*DOCS, OTHERS[0]):
        assert f"({document.relative_to(ROOT)})" in text
    first = text.index("```bash")
    assert text[:first].count("\n") < 25 and "bash scripts/run_train_tiny.sh" in text[first : first + 200]


def test_these_checks_see_what_they_look_for():
    """A check that takes everything would pass for ever."""
    for line in (
        "python -m dpdmd.train --no_such_flag 1",
        "python -m dpdmd.train --k_anchor 40",
        "python -m dpdmd.nothing",
        "python test_nothing.py",
        "python test_quality.py --maniqa 1",
        "bash scripts/nothing.sh",
        "bash scripts/run_train_sd35.sh --max_step 3",
        "bash scripts/download_weights.sh sd36",
        "NO_SUCH=1 bash scripts/run_train_sd35.sh",
        "accelerate launch --config_file scripts/nothing.yaml -m dpdmd.train",
        "accelerate launch -m dpdmd.train --k_anchor 40",
        "torchrun --nproc_per_node 2 -m dpdmd.train --nothing",
        "pip install -e '.[nothing]'",
        "mystery --help",
    ):
        (found,) = documents.commands(line)
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            documents.check(found)


# The walks of architecture.md


def put_into(package: Path, block: str) -> None:
    """Put a block where its first line says: at a file's end, before or in place of a name, in a table or a class."""
    head, _, text = block.partition("\n")
    file, how, name = re.fullmatch(r"# (\S+?)(?:, (before|in place of|in) (\w+))?", head).groups()
    path = package.parent / file
    source = path.read_text() if path.exists() else ""
    lines = source.splitlines()
    if how is None:
        path.write_text(f"{source}\n\n{text}")
        return
    (node,) = (node for node in ast.parse(source).body if name in names_of(node))
    if how == "before":
        lines[node.lineno - 1 : node.lineno - 1] = [*text.splitlines(), "", ""]
    elif how == "in place of":
        lines[node.lineno - 1 : node.end_lineno] = text.splitlines()
    elif isinstance(node, ast.ClassDef):
        lines[node.end_lineno : node.end_lineno] = [f"    {line}" for line in text.splitlines()]
    else:  # the last line of a table is its bracket
        lines[node.end_lineno - 1 : node.end_lineno - 1] = [f"{text.rstrip()},"]
    path.write_text("\n".join(lines) + "\n")


def names_of(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_the_additions_of_architecture_work(world: Path, tmp_path: Path):
    """All blocks in a copy of the package, and a run that uses the method, the scorer and the flag."""
    package = Path(shutil.copytree(ROOT / "dpdmd", tmp_path / "dpdmd", ignore=shutil.ignore_patterns("__pycache__")))
    blocks = documents.blocks(ROOT / "docs" / "architecture.md")
    blocks = [block for block in blocks if block.language == "python" and not quoted(block)]
    for block in blocks:
        put_into(package, block.text)
    flags = ["--config", "scripts/configs/tiny.yaml", "--run_dir", str(tmp_path / "run"), *SHORT["dpdmd.train"]]
    flags += ["--method", "dmd_l2", "--regression_weight", "2", "--lr_scheduler", "linear", "--lr_floor", "0.75"]
    flags += ["--max_steps", "4", "--clip_margin_path", "weights/tiny/clip"]
    done = subprocess.run(
        [sys.executable, "-m", "dpdmd.train", *flags],
        cwd=world,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    students = [record for record in records if record["turn"] == "student"]
    assert all(record["loss_regression"] > 0 for record in students)
    evaluated = [record for record in records if record["turn"] == "eval"]
    assert all(math.isfinite(record["eval/shapes_eval_preference_clip_margin"]) for record in evaluated) and evaluated
    rates = [record["lr"] for record in records if record["turn"] == "fake"]
    assert rates == [8e-4, 8e-4 * 0.75]  # of two updates: 1 and 1/2 without the floor of .75


def quoted(block: documents.Block) -> str | None:
    """Return the file that a block quotes by its first line, if it quotes one."""
    found = re.match(r"# from (\S+)\n", block.text)
    return found and found[1]


def test_quoted_lines_are_those_of_their_files():
    """Between lines with `...`, each part stands in the file as it is printed."""
    found = [block for document in ALL for block in documents.blocks(document) if quoted(block)]
    assert {quoted(block).split("/")[-1] for block in found} >= {"layout.py", "family.py", "small_models.py"}
    for block in found:
        text = (ROOT / quoted(block)).read_text()
        for part in block.text.partition("\n")[2].split("\n...\n"):
            assert f"\n{part.strip(chr(10))}\n" in text, block.place


def test_a_familys_methods_are_those_that_the_document_lists():
    listed = {
        name
        for row in rows_of_lines(ROOT / "docs" / "architecture.md", "   | `")
        for name in documents.INLINE.findall(row.split("|")[1])
    }
    assert listed == set(Family.__abstractmethods__)
    outside = [
        path
        for path in (ROOT / "dpdmd").rglob("*.py")
        if "lumina2" in path.read_text() and path.parent.name != "lumina2"
    ]
    tables = {"dpdmd/models/registry.py", "dpdmd/config/presets.py"}
    assert {str(path.relative_to(ROOT)) for path in outside} == tables


def rows_of_lines(document: Path, start: str) -> list[str]:
    """Return a document's lines that begin with `start`."""
    return [line for line in documents.prose(document).splitlines() if line.startswith(start)]
