"""Measure a model on the small world with the oracle: `python -m dpdmd.shapes.measure --model RUN_OR_PIPELINE`.

`--prompt_txt data/shapes_geneval.txt` measures accuracy by category of prompts, as GenEval does. For models of two
objects (`weights/tiny/sd35_pairs`), `data/pairs_geneval.txt` adds colour binding and position.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.shapes.measure")

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpdmd.config.sampling_flags import add_sampling_flags, check_ranges, check_total
from dpdmd.data.prompt_files import COLUMN_HELP, read_prompts
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.distributed.topology import local_device
from dpdmd.evaluation.statistics import Summary
from dpdmd.models.base import TextEncoder
from dpdmd.sampling.find_model import Model, find_model
from dpdmd.sampling.load_model import image_size, load_sampler
from dpdmd.sampling.sampler import Sampler, batches_of, check_finite
from dpdmd.shapes.categories import accuracy_by_category, category
from dpdmd.shapes.oracle import PromptMetrics, WorldMetrics, mean_metrics, measure_prompt, read_images
from dpdmd.shapes.pair_oracle import measure_pair_prompt, read_pairs
from dpdmd.shapes.pairs import parse_caption
from dpdmd.shapes.world import IMAGE_SIZE
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.image_grid import to_float, to_pil
from dpdmd.utils.paths import check_writable_file, user_path
from dpdmd.utils.programs import FAILURES, make_parser, run_program
from dpdmd.utils.tables import markdown_table
from dpdmd.utils.text_files import read_json

PROGRAM = "dpdmd.shapes.measure"
EVAL_PROMPTS = "data/shapes_eval.txt"
BATCH_SIZE = 64
COLUMNS = ("accuracy", "unrecognised", "entropy", "coverage", "spread")


def read_captions(path: Path, column: str | None = None) -> list[str]:
    """Read the captions of a prompt file, each once.

    Raises:
        ValueError: the file cannot be read, or a line is not a caption of the small world; the message names it.
    """
    captions = list(dict.fromkeys(read_prompts(path, column=column)))
    for caption in captions:
        try:
            parse_caption(caption)
        except ValueError as error:
            raise ValueError(f"--prompt_txt {path}: {error}") from None
    return captions


def measure_model(
    model: Path, sampler: Sampler, encoder: TextEncoder, prompts: Sequence[str], num_seeds: int, seed: int
) -> list[PromptMetrics]:
    """Return the metrics of each prompt over `num_seeds` images, which are rounded to 8 bits.

    Raises:
        ValueError: an image is not finite; the message names `model`.
    """
    images: dict[int, list] = {index: [] for index in range(len(prompts))}
    batches = batches_of(len(prompts), num_seeds, BATCH_SIZE)
    for keys, batch in sampler.sweep(encoder, prompts, batches, seed, progress="measuring"):
        check_finite(batch, model)
        for (prompt, _), image in zip(keys, to_pil(batch), strict=True):
            images[prompt].append(image)
    return [measure_images(prompt, to_float(images[index])) for index, prompt in enumerate(prompts)]


def measure_images(prompt: str, images: np.ndarray) -> PromptMetrics:
    """Measure one prompt's images, [N, 3, 64, 64] in [0, 1], with the oracle for its number of objects.

    Raises:
        ValueError: `prompt` is not a caption of the small world, or there is no image.
    """
    if "relation" in parse_caption(prompt):
        return measure_pair_prompt(prompt, read_pairs(images))
    return measure_prompt(prompt, read_images(images))


def table(rows: dict[str, WorldMetrics]) -> str:
    """Return a Markdown table with one row per model."""
    values = {name: metrics.as_dict() for name, metrics in rows.items()}
    cells = [[name, *(_number(row[column]) for column in COLUMNS)] for name, row in values.items()]
    return markdown_table(["model", *COLUMNS], cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def category_table(rows: Mapping[str, Mapping[str, Summary]]) -> str:
    """Return a Markdown table of accuracy by category, one row per model; overall is the mean, as in GenEval."""
    names = list(next(iter(rows.values())))
    cells = []
    for model, summaries in rows.items():
        overall = sum(summary.mean for summary in summaries.values()) / len(summaries)
        cells.append([model, *(summary.interval for summary in summaries.values()), f"{overall:.3f}"])
    return markdown_table(["accuracy", *names, "overall"], cells)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `dpdmd.shapes.measure`."""
    parser = make_parser(PROGRAM, __doc__)
    parser.add_argument(
        "--model",
        type=user_path,
        nargs="+",
        action="extend",
        required=True,
        help="run folders, checkpoints or pipeline folders",
    )
    parser.add_argument(
        "--prompt_txt",
        type=user_path,
        default=Path(EVAL_PROMPTS),
        help="captions of the small world (default: %(default)s)",
    )
    parser.add_argument("--prompt_column", help=COLUMN_HELP)
    parser.add_argument("--num_seeds", type=int, default=64, help="images per prompt (default: %(default)s)")
    add_sampling_flags(parser, "seed", "steps", "guidance_scale")
    parser.add_argument(
        "--out",
        type=user_path,
        help="also write the metrics, per prompt too, to this JSON file; a run's report shows RUN/figures.json",
    )
    return parser


def check(args: argparse.Namespace) -> list[str]:
    """Check all flags before a model is loaded, and return the captions.

    Raises:
        ValueError: one line that names the flag and what to do.
    """
    check_ranges(vars(args))
    captions = read_captions(args.prompt_txt, args.prompt_column)
    check_total("num_seeds", len(captions), args.num_seeds)
    for model in args.model:
        check_size(find_model(model, None))
    if args.out:
        check_writable_file("--out", args.out)
        check_replaces_result(
            args.out, lambda found: all(isinstance(each, dict) and "mean" in each for each in found.values())
        )
    return captions


def check_replaces_result(out: Path, is_result: Callable[[dict[str, Any]], bool]) -> None:
    """Check that the result replaces no other file than an earlier result, such as RUN/metrics.jsonl.

    Raises:
        ValueError: one line that names --out.
    """
    if not out.exists():
        return
    try:
        found = read_json(out)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not is_result(found):
        raise ValueError(f"--out {out}: exists and is no result of this program; give another file")


def check_size(model: Model) -> None:
    """Check that a model makes images of the small world's size.

    Raises:
        ValueError: it does not, or its folder does not say it.
    """
    height, width = image_size(model, None, None)
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"--model {model.source}: makes images of {height} x {width} pixels, and the oracle reads {IMAGE_SIZE} x "
            f"{IMAGE_SIZE}; give a model of the small world"
        )


def metric_names(captions: Sequence[str]) -> list[str]:
    """Return the names of the metrics that these captions have: spread needs one object, entropy an open attribute."""
    by_attributes = {frozenset(parse_caption(caption)): caption for caption in captions}
    blank = np.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    metrics = [measure_images(caption, blank) for caption in by_attributes.values()]
    names = [item.name for item in fields(PromptMetrics)]
    known = [name for name in names if any(getattr(each, name) not in (None, {}) for each in metrics)]
    return known + [f"accuracy/{name}" for name in dict.fromkeys(map(category, captions))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure models. Return the exit status: 2 for wrong input, 1 if a model fails or nothing can be written.

    A model that fails leaves the metrics of the others.
    """
    args = build_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    check_single_process("it measures one model after the other")
    precision.set_up(bf16=False)
    prompts = check(args)
    status, rows, by_category, details = 0, {}, {}, {}

    def measure(model: Path) -> None:
        try:
            with out_of_memory.explained("is the device in use elsewhere?"):
                name = str(model)
                rows[name], by_category[name], details[name] = _measure(model, args, prompts)
        except FAILURES as error:
            raise OSError(f"--model {model}: {error}") from None

    for model in args.model:
        status = run_program(PROGRAM, partial(measure, model)) or status
    if not details:
        return status
    head = f"{len(prompts)} prompts x {args.num_seeds} seeds, seed {args.seed}"
    sys.stdout.write(f"{head}\n\n{table(rows)}\n\n{category_table(by_category)}\n")
    if args.out:
        write_result(args.out, details)
    return status


def write_result(out: Path, content: dict[str, Any]) -> None:
    """Write a result to --out.

    Raises:
        OSError: it cannot be written; the message names --out.
    """
    try:
        write_json(out, content)
    except OSError as error:
        raise OSError(f"--out {out}: {error.strerror}") from None


def _measure(
    model: Path, args: argparse.Namespace, prompts: Sequence[str]
) -> tuple[WorldMetrics, dict[str, Summary], dict[str, Any]]:
    """Return one model's metrics: their means, the accuracy by category, and everything for --out."""
    started = time.perf_counter()
    device = local_device()
    sampler, encoder = load_sampler(model, device, steps=args.steps, guidance_scale=args.guidance_scale)
    metrics = measure_model(model, sampler, encoder, prompts, args.num_seeds, args.seed)
    world, categories = mean_metrics(metrics), accuracy_by_category(prompts, metrics)
    details = {
        "steps": len(sampler.settings.sigmas) - 1,
        "guidance_scale": sampler.settings.guidance_scale,
        "seconds": time.perf_counter() - started,
        "mean": world.as_dict(),
        "categories": {name: asdict(summary) for name, summary in categories.items()},
        "prompts": {p: {"category": category(p), **vars(m)} for p, m in zip(prompts, metrics, strict=True)},
    }
    return world, categories, details


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
