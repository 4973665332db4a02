"""Run a root program's job: generate the missing images, score all of them, write the results."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from dpdmd.config.scorer_table import SCORERS, metric_names
from dpdmd.data.prompts import fingerprint
from dpdmd.distributed import collectives
from dpdmd.distributed.launch_env import single_process_warning
from dpdmd.distributed.topology import describe, start_accelerator
from dpdmd.evaluation.program_job import Job
from dpdmd.evaluation.scorer_memory import scorer_bytes
from dpdmd.evaluation.scorers import build_scorer, check_scorer_contents
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.evaluation.scoring import (
    UNREADABLE,
    ImageScores,
    ScoreReport,
    score_batch,
    summarise_scores,
    write_csv,
)
from dpdmd.models.identity import Identity, identify
from dpdmd.models.memory_estimate import MemoryItem
from dpdmd.sampling.find_model import find_model
from dpdmd.sampling.image_folder import (
    GRIDS,
    PER_IMAGE,
    PICTURES,
    SUMMARY,
    TABLE,
    ImageFile,
    check_or_write_settings,
    file_name,
    grid_files,
    is_whole,
    open_image,
)
from dpdmd.sampling.load_model import SamplerPlan, plan_sampler, uses_bf16
from dpdmd.sampling.memory_estimate import report_memory
from dpdmd.sampling.model_identity import model_settings
from dpdmd.sampling.sampler import Batch, batches_of, check_finite
from dpdmd.utils import out_of_memory, precision
from dpdmd.utils.atomic_files import clear_leftovers, write_json, write_text
from dpdmd.utils.image_grid import labelled_grid, save_image, that_fit, to_pil
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import same_place
from dpdmd.utils.tables import latex_row, latex_text
from dpdmd.utils.text_files import expecting_mapping_keys, read_json
from dpdmd.utils.versions import versions
from dpdmd.utils.wording import counted

LOWER = "lower --gen_batch_size, --height or --width, or give --bf16"
FEWER_SCORERS = "give fewer scorers at a time, each time in another --output_dir: an empty path leaves one out"
SMALLER_BATCH = "lower --batch_size"
NUM_GRIDS = 32  # prompts that get a grid


def run(job: Job) -> ScoreReport:
    """Run the job. Call on every rank; rank 0 writes and prints the results.

    Raises:
        ValueError: the processes do not find each other, the model's or a scorer's files do not load, or `output_dir`
            holds other images or scores.
        OSError: an image or a result cannot be written, or no image has a score.
        MemoryError: the device has too little memory.
    """
    check_scorer_contents(job.paths)
    accelerator = start_accelerator()
    scorer_files: dict[str, Identity] = {}  # before they are loaded: the scores are of these
    with _raised_everywhere(accelerator):
        if accelerator.is_main_process:
            scorer_files = {name: identify(paths) for name, paths in job.paths.items()}
            _check_results(job, scorer_files)
    if accelerator.is_main_process:
        _introduce(job, accelerator)
        clear_leftovers([job.out, job.out / PICTURES, job.out / GRIDS])
    if job.images:
        job.args.bf16 = bool(job.args.bf16)
        precision.set_up(job.args.bf16)
    images, settings = (job.images, {}) if job.images else _generate(job, accelerator)
    with _raised_everywhere(accelerator, FEWER_SCORERS):
        scorers = [
            build_scorer(name, paths, accelerator.device, **job.options[name]) for name, paths in job.paths.items()
        ]
    with _raised_everywhere(accelerator, SMALLER_BATCH):
        rows = _score(job, images, scorers, accelerator)
    metrics = metric_names(job.paths)
    with out_of_memory.explained(FEWER_SCORERS):  # not raised everywhere: the others wait in the gathering itself
        rows = collectives.gather(accelerator, rows)
    result = summarise_scores(rows, metrics, job.args.seed)
    with _raised_everywhere(accelerator):
        if accelerator.is_main_process:
            _write(job, result, metrics, settings, scorer_files, accelerator.num_processes)
    if all(summary.mean is None for summary in result.summaries.values()):
        raise OSError(f"no image has a score; the notes in {job.out / PER_IMAGE} say why")
    return result


def _introduce(job: Job, accelerator: Accelerator) -> None:
    """Say on stderr how many processes work on how many images."""
    if warning := single_process_warning():
        logger.warning("%s", warning)
    if job.note:
        logger.warning("%s", job.note)
    images, prompts = len(job.images), len({image.key[0] for image in job.images})
    if not job.images:
        prompts = len(job.prompts)
        images = prompts * job.args.num_samples
    work = f"{counted(images, 'image')} of {counted(prompts, 'prompt')}"
    tqdm.write(f"{describe(accelerator.num_processes, accelerator.device)}: {work}", file=sys.stderr)


def _check_results(job: Job, scorer_files: dict[str, Identity]) -> None:
    """Check that this call gives all scores that are in the output folder. Call on rank 0 only.

    Args:
        scorer_files: scorer -> the content of its files, whatever their paths.

    Raises:
        ValueError: these are of other scorers, or of other images, prompts or settings, and would be lost.
    """
    path = job.out / SUMMARY
    if not path.is_file():
        return
    try:
        found = read_json(path)
        with expecting_mapping_keys(path):
            metrics, settings = [*found["metrics"]], {**found["settings"]}
            before = {**found.get("scorers", {})}
    except ValueError as error:
        raise ValueError(f"--output_dir: {error}, so the scores there are unknown; give another folder") from None
    args = vars(job.args)
    rows = [SCORERS[name] for name in job.paths if name in metrics]
    # pictures.json has the settings of a model's images
    names = ["images", *(("seed", "prompts_txt", "prompt_column", "images_per_prompt") if job.images else ())]
    names += [option.flag for row in rows for option in row.options if option.flag in settings]
    changes = [
        f"{name}: {settings.get(name)!r} there, {args[name]!r} now"
        for name in dict.fromkeys(names)
        if not _equal_setting(settings.get(name), args[name])
    ]
    changes += [f"{name} has other weights" for name, now in scorer_files.items() if before.get(name, now) != now]
    changes += [f"{name} is left out now" for name in metrics if name not in metric_names(job.paths)]
    if changes:
        pictures = job.out / PICTURES
        same = ""
        if pictures.is_dir():
            same = f", and --images {pictures} and their --prompts_txt to score the images there"
        raise ValueError(
            f"--output_dir {job.out}: holds the scores of another call ({'; '.join(changes)}); give another{same}"
        )


def _equal_setting(there: Any, now: Any) -> bool:
    """Return whether two values of a flag are equal. A path may be written in several ways."""
    there, now = there or None, now or None  # "" is none too
    return there == now or (isinstance(there, str) and isinstance(now, str) and same_place(there, now))


def _generate(job: Job, accelerator: Accelerator) -> tuple[list[ImageFile], dict[str, Any]]:
    """Generate this rank's share of the missing images; return the images of all ranks, and their settings."""
    args, folder = job.args, job.out / PICTURES
    with _raised_everywhere(accelerator, LOWER):
        plan = _plan(job, accelerator)
    settings = {
        **plan.settings.as_dict(),
        "seed": args.seed,
        "num_samples": args.num_samples,
        "bf16": args.bf16,
        "gen_batch_size": args.gen_batch_size,
        "prompts": fingerprint(job.prompts),
    }
    with _raised_everywhere(accelerator):
        if accelerator.is_main_process:
            settings |= model_settings(plan.model)
            check_or_write_settings(folder, settings, "--output_dir")
    batches = batches_of(len(job.prompts), args.num_samples, args.gen_batch_size)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    # Batches are generated whole, because an image's last bits may depend on its batch.
    todo = [batch for batch in mine if not all(is_whole(folder / file_name(key)) for key in batch)]
    with _raised_everywhere(accelerator, LOWER):
        if todo:
            _write_pictures(job, plan, todo, folder, progress=accelerator.is_main_process)
    keys = [key for batch in batches for key in batch]
    return [ImageFile(key, job.prompts[key[0]], folder / file_name(key)) for key in keys], settings


def _plan(job: Job, accelerator: Accelerator) -> SamplerPlan:
    """Check the model, decide the precision, and print the memory estimate."""
    args = job.args
    model = find_model(job.model, job.base_model)
    args.bf16 = uses_bf16(model, args.bf16)
    plan = plan_sampler(
        model,
        accelerator.device,
        dtype=precision.set_up(args.bf16),
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        height=args.height,
        width=args.width,
    )
    scorers = sum(scorer_bytes(name, paths) for name, paths in job.paths.items())
    item = MemoryItem("scorers", scorers, "weights in fp32", ("scoring",))
    batch = min(args.gen_batch_size, len(job.prompts) * args.num_samples)
    report_memory(plan, batch, "--gen_batch_size", item, show=accelerator.is_main_process)
    return plan


def _write_pictures(job: Job, plan: SamplerPlan, batches: list[Batch], folder: Path, *, progress: bool) -> None:
    """Sample the images of some batches into the folder; all models are gone on return."""
    wanted = sorted({prompt for batch in batches for prompt, _ in batch})
    shown = ("encoding prompts", "generating") if progress else ("", "")
    sampler, encoder = plan.load([job.prompts[prompt] for prompt in wanted], progress=shown[0])
    for keys, made in sampler.sweep(encoder, job.prompts, batches, job.args.seed, progress=shown[1]):
        check_finite(made, job.args.model)
        for key, image in zip(keys, to_pil(made), strict=True):
            save_image(image, folder / file_name(key))


@contextmanager
def _raised_everywhere(accelerator: Accelerator, advice: str = LOWER) -> Iterator[None]:
    """Raise an error of one rank on all ranks, since the others would wait for that rank. Collective.

    Raises:
        ValueError, OSError, MemoryError: the first rank's; if memory ran out, the message gives `advice`.
    """
    problem = None
    try:
        with out_of_memory.explained(advice):
            yield
    except (ValueError, OSError, MemoryError) as error:
        problem = error
    collectives.raise_everywhere(accelerator, problem)


def _score(job: Job, images: list[ImageFile], scorers: list[Scorer], accelerator: Accelerator) -> list[ImageScores]:
    """Score this rank's share of the images; an image that cannot be read has no score."""
    size = job.args.batch_size
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    rows: list[ImageScores] = []
    for batch in tqdm(mine, desc="scoring", disable=not accelerator.is_main_process):
        samples, files = [], []
        for image in batch:
            try:
                samples.append(Sample(open_image(image.path), image.prompt, image.key))
                files.append(str(image.path))
            except ValueError as error:
                rows.append(ImageScores(image.key, image.prompt, str(image.path), notes={UNREADABLE: str(error)}))
        rows += score_batch(samples, scorers, files, raise_memory=True)
    return rows


def _write(
    job: Job,
    result: ScoreReport,
    metrics: list[str],
    settings: dict[str, Any],
    scorer_files: dict[str, Identity],
    processes: int,
) -> None:
    """Write the result files and an image grid for each of the first prompts, and print the summaries.

    summary.json comes first: the other files beside it are then known to be this program's, also after a kill.
    """
    summary = {
        "metrics": {name: asdict(value) for name, value in result.summaries.items()},
        "settings": {
            **{name: value for name, value in vars(job.args).items() if value is not None and name != "given"},
            **settings,
        },
        "scorers": scorer_files,
        "processes": processes,
        "versions": versions(),
    }
    write_json(job.out / SUMMARY, summary, ensure_ascii=False, default=str)
    write_csv(job.out / PER_IMAGE, result.rows, metrics)
    line = table(job, result)
    write_text(job.out / TABLE, line + "\n")
    unreadable = sum(UNREADABLE in row.notes for row in result.rows)
    for name, value in result.summaries.items():
        tqdm.write(f"{name:18} {value}")
    if unreadable:
        tqdm.write(f"{unreadable} of {len(result.rows)} images could not be read: see {job.out / PER_IMAGE}")
    tqdm.write(f"\n{line}\n\n{job.out}")
    _save_grids(job, result)


def table(job: Job, result: ScoreReport) -> str:
    """Return a row of a LaTeX table, under a comment with the column names."""
    name = latex_text(Path(job.args.images or job.args.model).name)
    cells = ["--" if value.mean is None else f"{value.mean:.3f}" for value in result.summaries.values()]
    return f"% {' & '.join(['model', *result.summaries])}\n{latex_row([name, *cells])}"


def _save_grids(job: Job, result: ScoreReport) -> None:
    """Write the grids in place of those of an earlier call."""
    for path in grid_files(job.out):
        path.unlink()
    groups: dict[int, list[ImageScores]] = {}
    for row in result.rows:
        if UNREADABLE not in row.notes:
            groups.setdefault(row.key[0], []).append(row)
    for prompt, rows in list(groups.items())[:NUM_GRIDS]:
        if len(rows) > 1:
            images = that_fit(open_image(Path(row.file)) for row in rows)
            if len(images) < len(rows):
                logger.warning("grids/%05d.png has the first %d of %d images", prompt, len(images), len(rows))
            grid = labelled_grid([images], [rows[0].prompt or str(prompt)], columns=min(9, len(images)))
            save_image(grid, job.out / GRIDS / f"{prompt:05d}.png")
