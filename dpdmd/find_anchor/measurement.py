"""The work of `dpdmd.find_anchor`: check and load the teacher, measure its curve, write the files."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from dpdmd.config import Config
from dpdmd.data.prompts import pool_prompts
from dpdmd.distributed.topology import describe, local_device
from dpdmd.evaluation.in_loop_setup import set_up_evaluation
from dpdmd.find_anchor.result import Result, Samples
from dpdmd.methods.decidedness import CurveSettings, cheap_space, curve_steps, measure_curves, straight_line_ends
from dpdmd.models.attention_backend import use_attention_backend
from dpdmd.models.base import TextEncoder
from dpdmd.models.registry import family_class
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.sampling.find_model import Model
from dpdmd.sampling.load_model import SamplerPlan
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.training.model_sources import locate_models
from dpdmd.training.preflight import read_training_prompts
from dpdmd.training.preflight_machine import check_machine
from dpdmd.training.preflight_models import check_models, check_weights
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.image_grid import save_image, to_pil
from dpdmd.utils.wording import counted

SHOWN_SEEDS = 4  # rows of images in anchor.png


def run(config: Config, own: argparse.Namespace) -> str:
    """Measure, write the files, and return the table and the result for the terminal.

    Raises:
        ValueError: one line that names the flag or file and what to do.
        OSError: a file cannot be written.
        MemoryError: the device has too little memory.
    """
    prompts = _check_teacher(config, own.num_prompts)
    lower = "lower --batch_size, --height or --width, or give --bf16, --space latents or --text_encoder_precision int8"
    with out_of_memory.explained(lower):
        return _run(config, own, prompts)


def _check_teacher(config: Config, num_prompts: int) -> list[str]:
    """Check the teacher and everything that the flags name, and return the prompts to measure with."""
    check_machine(config)
    locate_models(config)
    check_models(config)
    prompts, weights = read_training_prompts(config.data)
    if num_prompts > len(prompts):
        raise ValueError(
            f"--num_prompts {num_prompts}: --prompt_txt {config.data.prompt_txt} has {len(prompts)}; give fewer"
        )
    check_weights(config, set_up_evaluation(config.eval, None, list(config.data.image_sizes)))
    return pool_prompts(prompts, config.run.seed, num_prompts, weights)


def load_teacher(config: Config, prompts: Sequence[str]) -> tuple[Sampler, TextEncoder]:
    """Load the teacher as `dpdmd.train` does, with the grid and the guidance of its anchors (`SamplerPlan.load`)."""
    dtype = precision.set_up(config.optim.bf16)
    family = family_class(config.model.family)(local_device(), dtype, config.model.precisions)
    model = Model(Path(config.model.teacher_id), SamplingDefaults(no_t5=config.model.no_t5))
    method, size = config.method, next(iter(config.data.image_sizes))
    schedule = family.load_schedule(model.folder).at_size(*size)
    grid = schedule.default_sigmas(method.teacher_infer_steps)
    settings = SamplerSettings(grid, method.teacher_guidance_scale, *size)
    sampler, encoder = SamplerPlan(model, family, schedule, settings, config.data.max_sequence_length).load(prompts)
    if config.optim.attention_backend:
        use_attention_backend(sampler.network, config.optim.attention_backend, dtype)
    return sampler, encoder


def _run(config: Config, own: argparse.Namespace, prompts: Sequence[str]) -> str:
    started = time.perf_counter()
    sampler, encoder = load_teacher(config, prompts)
    steps = curve_steps(config.method.teacher_infer_steps)
    space = own.space or cheap_space(sampler.settings.height, sampler.settings.width)
    settings = CurveSettings(steps, space, own.num_seeds, config.run.seed, config.optim.batch_size)
    work = f"{counted(len(prompts), 'prompt')} x {counted(own.num_seeds, 'seed')}, compared in {space}"
    tqdm.write(f"{describe(1, sampler.family.device)}: {work}", file=sys.stderr)
    try:
        curves = measure_curves(sampler, encoder, list(enumerate(prompts)), settings)
    except ValueError as error:
        raise ValueError(f"--teacher_id {config.model.teacher_id}: {error}") from None
    result = Result(config, settings, sampler, prompts, [curves[index] for index in range(len(prompts))], own.threshold)
    seconds, path = time.perf_counter() - started, own.out / "anchor.json"
    write_json(path, {**result.as_dict(), "seconds": round(seconds, 1)})
    try:
        samples = _sample(sampler, encoder, prompts[0], settings, result.shown_steps())
        picture = str(_draw(result, samples, own.out))
    except Exception as error:  # the measurement is there, so any error of decoder, plot or disk is only reported
        picture = f"without anchor.png ({type(error).__name__}: {shorten_error(error)})"
    return f"{result.table()}\n{path}, {picture}"


def _draw(result: Result, samples: Samples, out: Path) -> Path:
    """Write anchor.png to `out`, and return its path."""
    from dpdmd.find_anchor.plot import draw  # imports matplotlib

    save_image(draw(result, samples), out / "anchor.png")
    return out / "anchor.png"


def _sample(
    sampler: Sampler, encoder: TextEncoder, prompt: str, settings: CurveSettings, steps: Sequence[int]
) -> Samples:
    """Decode what the anchors of a prompt's first seeds point at, for each K of `steps`."""
    keys = [(0, sample) for sample in range(min(SHOWN_SEEDS, settings.num_seeds))]
    eps, text = sampler.start_noise(keys, settings.seed), encoder.encode([prompt])
    rows = [straight_line_ends(sampler, text, eps[i : i + 1], steps).flatten(0, 1) for i in range(len(keys))]
    decoded = [[sampler.decoder.decode(each[None].to(eps.device)).cpu() for each in row] for row in rows]
    return Samples(prompt, steps, [to_pil(torch.cat(row)) for row in decoded])
