"""Oracle metrics of a model on the small world: `python -m dpdmd.shapes.measure --model RUN_OR_PIPELINE`.

`--prompt_txt data/shapes_geneval.txt` measures prompt-following by category, as GenEval does.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from dpdmd.evaluation.statistics import Summary
from dpdmd.families.base import TextEncoder
from dpdmd.grids import to_float, to_pil
from dpdmd.prompts import read_prompts
from dpdmd.run_folder import write_text
from dpdmd.sampling import Sampler, batches_of, load_sampler
from dpdmd.shapes.categories import category, following
from dpdmd.shapes.oracle import PromptMetrics, WorldMetrics, measure_prompt, read_pictures, summarise
from dpdmd.shapes.world import parse_caption

EVAL_PROMPTS = "data/shapes_eval.txt"
COLUMNS = ("accuracy", "unrecognised", "entropy", "coverage", "spread")


def measure_sampler(
    sampler: Sampler, encoder: TextEncoder, prompts: Sequence[str], num_seeds: int, seed: int, batch_size: int = 64
) -> list[PromptMetrics]:
    """Metrics of each prompt over `num_seeds` pictures, 8-bit as a person would see them."""
    pictures: dict[int, list] = {index: [] for index in range(len(prompts))}
    batches = batches_of(len(prompts), num_seeds, batch_size)
    for keys, batch in sampler.sweep(encoder, prompts, batches, seed, progress="measuring"):
        for (prompt, _), picture in zip(keys, to_pil(batch), strict=True):
            pictures[prompt].append(picture)
    return [measure_prompt(prompt, read_pictures(to_float(pictures[index]))) for index, prompt in enumerate(prompts)]


def table(rows: dict[str, WorldMetrics]) -> str:
    """Markdown table, a row a model."""
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, metrics in rows.items():
        values = metrics.as_dict()
        lines.append(f"| {name} | " + " | ".join(f"{values[column]:.3f}" for column in COLUMNS) + " |")
    return "\n".join(lines)


def following_table(rows: Mapping[str, Mapping[str, Summary]]) -> str:
    """Markdown table of accuracy by category, a row a model; overall is the mean over categories, as GenEval's."""
    names = list(next(iter(rows.values())))
    lines = ["| accuracy | " + " | ".join([*names, "overall"]) + " |", "|---|" + "---|" * (len(names) + 1)]
    for model, summaries in rows.items():
        overall = sum(summary.mean for summary in summaries.values()) / len(summaries)
        lines.append(f"| {model} | {' | '.join(map(_interval, summaries.values()))} | {overall:.3f} |")
    return "\n".join(lines)


def _interval(summary: Summary) -> str:
    return f"{summary.mean:.3f}" + ("" if summary.low is None else f" [{summary.low:.3f}, {summary.high:.3f}]")


def build_parser() -> argparse.ArgumentParser:
    """The flags of `dpdmd.shapes.measure`."""
    parser = argparse.ArgumentParser(prog="dpdmd.shapes.measure", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="run folders, checkpoints or pipeline folders"
    )
    parser.add_argument(
        "--prompt_txt", type=Path, default=Path(EVAL_PROMPTS), help="captions of the small world (default: %(default)s)"
    )
    parser.add_argument("--num_seeds", type=int, default=64, help="pictures a prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the start noises (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: what the model's folder says)")
    parser.add_argument("--guidance_scale", type=float, help="(default: what the model's folder says)")
    parser.add_argument(
        "--out",
        type=Path,
        help="also write the figures, each prompt's included, to this JSON file; a run's report shows RUN/figures.json",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure models; exit status 2 on wrong input."""
    args = build_parser().parse_args(argv)
    rows, followed, details = {}, {}, {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        prompts = read_prompts(args.prompt_txt)
        for prompt in prompts:
            parse_caption(prompt)
        if args.num_seeds < 1:
            raise ValueError(f"--num_seeds {args.num_seeds}: must be at least 1")
        for model in args.model:
            started = time.perf_counter()
            sampler, encoder = load_sampler(model, device, steps=args.steps, guidance_scale=args.guidance_scale)
            metrics = measure_sampler(sampler, encoder, prompts, args.num_seeds, args.seed)
            rows[str(model)] = summarise(metrics)
            followed[str(model)] = following(prompts, metrics)
            details[str(model)] = {
                "steps": len(sampler.settings.sigmas) - 1,
                "guidance_scale": sampler.settings.guidance_scale,
                "seconds": time.perf_counter() - started,
                "mean": rows[str(model)].as_dict(),
                "categories": {name: asdict(summary) for name, summary in followed[str(model)].items()},
                "prompts": {p: {"category": category(p), **vars(m)} for p, m in zip(prompts, metrics, strict=True)},
            }
    except ValueError as error:
        print(f"dpdmd.shapes.measure: error: {error}", file=sys.stderr)
        return 2
    head = f"{len(prompts)} prompts x {args.num_seeds} seeds, seed {args.seed}"
    sys.stdout.write(f"{head}\n\n{table(rows)}\n\n{following_table(followed)}\n")
    if args.out:
        write_text(args.out, json.dumps(details, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
