"""The model card of an exported student: README.md with the YAML head that the Hub reads.

It says what the student is, how diffusers samples it, what it scored, and how it was trained. A card names no path of
the machine, but for the base of a LoRA that is not on the Hub.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dpdmd.config.method_table import METHODS
from dpdmd.config.precisions import UNQUANTIZED
from dpdmd.evaluation.seed_grids import TEACHER
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.report.card_code import snippet, student_line
from dpdmd.report.card_facts import CARD, PIPELINE, SINGLE_FILE, Card, Training, hub_id, licence_of
from dpdmd.report.runs import score_of
from dpdmd.report.scores import Score
from dpdmd.report.tables import DASH, interval, number
from dpdmd.run_folder import LORA
from dpdmd.utils.hub import parse_id
from dpdmd.utils.paths import SCHEDULER_CONFIG
from dpdmd.utils.tables import markdown_table
from dpdmd.utils.text_files import read_json

IMAGES = "images"
PAPER = "2602.03139"
PROMPT = "a red circle"  # of the snippet, if the run has no images
_METHODS = {"dpdmd": "DP-DMD", "dmd": "DMD", "dmd_lpips": "DMD-LPIPS", "dmd_gan": "DMD-GAN"}


def write_card(folder: Path, card: Card, *, images: bool) -> None:
    """Write README.md into an exported folder, with copies of the run's seed grids of this step if `images`.

    The folder's own dpdmd.json and scheduler decide the snippet.

    Raises:
        OSError: a file cannot be written.
    """
    defaults = read_sampling_defaults(folder, card.defaults)
    if card.kind == SINGLE_FILE:  # its code takes parts of the base; the folder itself names none
        defaults = replace(defaults, **_exact_base(card))
    scheduler = read_json(folder / SCHEDULER_CONFIG)
    card = replace(card, defaults=defaults, scheduler=scheduler)
    shown = _copy_images(folder / IMAGES, card.training) if images else []
    (folder / CARD).write_text(render(card, shown), encoding="utf-8")


def _exact_base(card: Card) -> dict[str, str | None]:
    """Return the commit and the variant of the base's weights, from a LoRA's sampling defaults or from the training."""
    config = card.training.config if card.training else {}
    teacher = parse_id(config.get("teacher_id") or "")
    return {
        "base_revision": card.defaults.base_revision or (teacher.revision if teacher else None),
        "base_variant": card.defaults.base_variant or config.get("variant"),
    }


def _copy_images(target: Path, training: Training | None) -> list[tuple[str, list[str]]]:
    """Copy the seed grids of the student's step. Return (prompt, names of the teacher's and the student's) of each."""
    grids = training.run.grids if training and training.run else {}
    found = []
    for index, student in enumerate(grids.get(training.step, []) if training else []):
        key = (student.image_set, student.prompt)
        same = (grid for grid in grids.get(TEACHER, []) if (grid.image_set, grid.prompt) == key)
        pair = [(TEACHER, next(same, None)), ("student", student)]
        names = []
        for who, grid in pair:
            if grid is not None:
                target.mkdir(exist_ok=True)
                names.append(f"{IMAGES}/{index:02d}_{who}{grid.file.suffix}")
                shutil.copyfile(grid.file, target.parent / names[-1])
        found.append((student.prompt, names))
    return [(prompt, names) for prompt, names in found if len(names) == 2]


def render(card: Card, shown: list[tuple[str, list[str]]]) -> str:
    """Return the card's text; `shown` as `_copy_images` returns it."""
    known = hub_id(card.base, card.layout)
    parts = [_head(card, known), f"# {card.name.rpartition('/')[2]}", _about(card, known), *_image_table(shown)]
    prompt = shown[0][0] if shown else PROMPT
    parts += ["## Use it", f"```python\n{snippet(card, prompt, known)}```", *_notes(card)]
    parts += _scores(card.training)
    parts += _training_table(card)
    return "\n\n".join(parts) + "\n"


def _about(card: Card, known: str | None) -> str:
    """Return the sentence that says what the model is. Without its training no method is named."""
    base = f"[{known}](https://huggingface.co/{known})" if known else f"`{card.base.name}`"
    steps, scale = card.defaults.steps, card.defaults.guidance_scale
    few = "one step" if steps == 1 else f"{steps} steps"
    guided = "without guidance" if scale == card.layout.guidance.off else f"with guidance {scale:g}"
    if card.training is None:
        what = "Made from" if card.from_base else "A copy of"
        return f"{what} {base}; it is sampled in {few} {guided}."
    method, what = card.training.config.get("method", "dpdmd"), "LoRA of" if card.kind == LORA else "student of"
    return (
        f"A {what} {base}, distilled with {_METHODS.get(method, method)} "
        f"([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})): {few} {guided} in place of "
        f"{card.training.config['teacher_infer_steps']}."
    )


def _head(card: Card, known: str | None) -> str:
    cache_dir = card.training.config.get("cache_dir") if card.training else None
    values: dict[str, Any] = licence_of(card.base, card.layout, known, cache_dir)
    if known and card.from_base:
        values |= {"base_model": known, "base_model_relation": "adapter" if card.kind == LORA else "finetune"}
    values |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    tags = ["text-to-image", *(["distillation", "few-step", "dp-dmd"] if card.training else [])]
    tags += ["lora"] if card.kind == LORA else []
    values |= {"tags": [*tags, *([f"arxiv:{PAPER}"] if card.training else [])]}
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def rename(folder: Path, old: str, new: str) -> None:
    """Change the name by which the code of a folder's card loads the student.

    Raises:
        OSError: the card cannot be written.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace(student_line(old), student_line(new)), encoding="utf-8")


def _notes(card: Card) -> list[str]:
    """Return what a user should know who changes the snippet."""
    steps, notes, what = card.defaults.steps, [], "student" if card.training else "model"
    cfg = f"{card.defaults.guidance_scale - card.layout.guidance.off + 1:g}"  # ComfyUI's 1 is without guidance
    if card.defaults.sigmas_argument:
        notes.append(
            f"**Keep `sigmas=`.** No scheduler of diffusers makes this {what}'s noise levels from a number of steps. "
            "With `num_inference_steps` alone, the images are of other noise levels, without an error."
        )
    elif card.defaults.own_scheduler:
        own = ", ".join(f"{name}={value}" for name, value in card.defaults.own_scheduler.items())
        notes.append(
            f"The scheduler in this folder makes the {what}'s noise levels for {steps} steps. For another number of "
            f"steps, take the base model's: `pipe.scheduler.from_config(pipe.scheduler.config, {own})`."
        )
    if card.kind == LORA:
        notes.append("The scheduler belongs to the student: the base model's own would make other noise levels.")
        if card.layout.comfyui_reads_lora:
            file = "comfyui_lora.safetensors" if card.layout.comfyui_name else "pytorch_lora_weights.safetensors"
            notes.append(f"In ComfyUI, load `{file}` and sample with CFG 1 and {steps} steps.")
        else:
            notes.append("ComfyUI has no names for this LoRA: diffusers alone reads it.")
    if card.layout.t5 and card.defaults.no_t5 and card.kind != PIPELINE:
        notes.append(
            f"The {what} is sampled without the T5. diffusers puts vectors of zeros in the place of its text, and "
            "ComfyUI nothing, so ComfyUI's images differ a little."
        )
    if (precision := _base_precision(card)) != UNQUANTIZED:
        merged = "the code above puts it beside" if card.kind == LORA else "it is merged into"
        notes.append(
            f"**Trained on a base in {precision}.** The LoRA was trained on quantised linear layers, and {merged} the "
            "base model as it is stored, so the images differ a little from those of the training."
        )
    if card.kind == SINGLE_FILE:
        if parts := " and ".join(card.layout.beside_single_file):
            notes.append(f"diffusers reads the network alone from this file: the code takes {parts} of the base model.")
        loaded = "a checkpoint"
        if card.layout.single_file_network:
            notes.append("The file holds the network alone: the code takes all other parts of the base model.")
            loaded = "a diffusion model, with the base model's text encoder and autoencoder"
        notes.append(f"In ComfyUI, load the file as {loaded}, and sample with CFG {cfg} and {steps} steps.")
    return notes


def _base_precision(card: Card) -> str:
    return card.training.config.get("base_precision", UNQUANTIZED) if card.training else UNQUANTIZED


def _image_table(shown: list[tuple[str, list[str]]]) -> list[str]:
    if not shown:
        return []
    rows = [[prompt, f"![teacher]({names[0]})", f"![student]({names[1]})"] for prompt, names in shown]
    table = markdown_table(["prompt", "teacher", "this student"], rows)
    return [table, "*The same start noises in both grids.*"]


def _scores(training: Training | None) -> list[str]:
    """Return the section of the student's scores at its step, beside the teacher's; [] without any."""
    run = training.run if training else None
    record = next((each for each in (run.evaluations if run else ()) if each["step"] == training.step), None)
    if record is None:
        return []
    teacher = run.teacher
    if record not in run.comparable:  # the run's are of the last evaluation's prompts
        known = {metric.name: record.get(f"{metric.name}_teacher") for metric in run.metrics}
        teacher = {name: Score(value) for name, value in known.items() if value is not None}
    rows = []
    for metric in (metric for metric in run.metrics if not metric.rescaled):
        scores = score_of(record, metric), teacher.get(metric.name)
        cells = [f"{number(each.mean)} ({interval(each) or DASH})" if each else DASH for each in scores]
        rows.append([metric.label, metric.image_set, *cells])
    header = ["score", "prompts", "this student (95% interval)", "teacher (95% interval)"]
    return ["## Scores", markdown_table(header, rows)] if rows else []


def _training_table(card: Card) -> list[str]:
    training = card.training
    if training is None:
        return []
    config, method = training.config, training.config.get("method", "dpdmd")
    guidance, real = config.get("teacher_guidance_scale"), config.get("real_guidance_scale")
    apart = f", {real} in the DMD loss" if real is not None else ""
    rows = [
        ("method", method),
        ("teacher", f"{config.get('teacher_infer_steps')} steps, guidance {guidance}{apart}"),
        ("steps of the student, N", card.defaults.steps),
    ]
    if method in METHODS and "diversity" in METHODS[method].student_terms:
        rows += [("teacher steps to the anchor, K", config.get("k_anchor"))]
        rows += [("weight of the diversity loss, λ", config.get("div_weight"))]
    if card.kind == LORA:
        rank = config.get("lora_rank")
        rows += [("LoRA rank, alpha", f"{rank}, {config.get('lora_alpha') or rank}")]
    if (precision := _base_precision(card)) != UNQUANTIZED:
        rows += [("linear layers of the frozen base", precision)]
    if card.defaults.sigmas:
        rows += [("noise levels (sigmas)", ", ".join(f"{sigma:.4g}" for sigma in card.defaults.sigmas))]
    rows += [
        ("updates, student and fake score together", training.step),
        ("prompts (no images were used)", training.num_prompts or DASH),
        ("batch size x accumulation, of each process", f"{config.get('batch_size')} x {config.get('grad_accum')}"),
        ("learning rate of student, fake score", f"{config.get('lr_student')}, {config.get('lr_fake')}"),
        ("image sizes, width x height", ", ".join(map(str, card.defaults.trained_sizes)) or DASH),
        ("seed", config.get("seed")),
    ]
    return ["## Training", markdown_table(["setting", "value"], [[name, str(value)] for name, value in rows])]
