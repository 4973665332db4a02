"""The Python code of a model card: it samples the student with diffusers alone."""

import json

from dpdmd.report.card_facts import SINGLE_FILE, Card
from dpdmd.run_folder import LORA

_OF_TRANSFORMERS = ("CLIP", "T5", "Qwen2", "Qwen3")  # how its classes of text encoders begin
_FLOW = "FlowMatchEulerDiscreteScheduler"


def snippet(card: Card, prompt: str, known: str | None) -> str:
    """Return Python code that samples the student with diffusers alone."""
    layout, defaults = card.layout, card.defaults
    imports, lines = _loading(card, known or str(card.base.absolute()))
    lines = [*imports, "", f"{student_line(card.name)}  # this folder, or its name on the Hub", *lines]
    lines += ['pipe.to("cuda" if torch.cuda.is_available() else "cpu")', ""]
    sigmas = defaults.sigmas_argument
    options = [f"sigmas={[round(value, 6) for value in sigmas]}" if sigmas else f"num_inference_steps={defaults.steps}"]
    options += [f"{layout.guidance.argument}={defaults.guidance_scale}"]
    options += [] if layout.fixed_text_length else [f"max_sequence_length={defaults.max_sequence_length}"]
    options += [f"{name}={getattr(defaults, name)}" for name in ("height", "width") if getattr(defaults, name)]
    given = f"prompt={_quoted(prompt)}" if layout.image_first else _quoted(prompt)
    lines += ["image = pipe(", f"    {given},", *(f"    {option}," for option in options), ").images[0]"]
    return "\n".join([*lines, 'image.save("image.png")', ""])


def _loading(card: Card, base: str) -> tuple[list[str], list[str]]:
    """Return the imports of the snippet, and the lines that load `pipe` from `student`."""
    layout, dtype = card.layout, f"dtype=torch.{card.dtype}"
    exact = {"variant": card.defaults.base_variant, "revision": card.defaults.base_revision}
    from_base = ", ".join([dtype, *(f"{name}={_quoted(value)}" for name, value in exact.items() if value)])
    if card.kind == LORA:
        scheduler = card.scheduler.get("_class_name", _FLOW)
        without = "".join(f", {name}=None" for name in layout.t5 if card.defaults.no_t5)
        return _imports(layout.pipeline, scheduler), [
            f"pipe = {layout.pipeline}.from_pretrained({_quoted(base)}, {from_base}{without})",
            "pipe.load_lora_weights(student)",
            f'pipe.scheduler = {scheduler}.from_pretrained(student, subfolder="scheduler")',
        ]
    if card.kind != SINGLE_FILE:
        return _imports(layout.pipeline), [f"pipe = {layout.pipeline}.from_pretrained(student, {dtype})"]
    found = [
        "folder = student if os.path.isdir(student) else snapshot_download(student)",  # the next call takes no name
        f"file = os.path.join(folder, {_quoted(card.file)})",
    ]
    classes, lines = (_loading_network if layout.single_file_network else _loading_file)(card, base, from_base)
    return ["import os", "", *_imports(*classes), "from huggingface_hub import snapshot_download"], [*found, *lines]


def _loading_file(card: Card, base: str, from_base: str) -> tuple[list[str], list[str]]:
    """Return the classes and the lines that load `pipe` from a single `file`, with parts of the base beside it."""
    layout, dtype = card.layout, f"dtype=torch.{card.dtype}"
    beside = {name: layout.classes[name] for name in layout.beside_single_file}
    arguments = ["file", "config=folder", *(f"{name}={name}" for name in beside), dtype]
    return [layout.pipeline, *beside.values()], [
        *(
            f"{name} = {kind}.from_pretrained({_quoted(base)}, subfolder={_quoted(name)}, {from_base})"
            for name, kind in beside.items()
        ),
        f"pipe = {layout.pipeline}.from_single_file({', '.join(arguments)})",
    ]


def _loading_network(card: Card, base: str, from_base: str) -> tuple[list[str], list[str]]:
    """Return the classes and the lines that load `pipe` from the base, with the network of a single `file`."""
    layout, dtype, scheduler = card.layout, f"dtype=torch.{card.dtype}", card.scheduler.get("_class_name", _FLOW)
    network, kind = layout.network, layout.classes[layout.network]
    return [layout.pipeline, kind, scheduler], [
        f"{network} = {kind}.from_single_file(file, config=folder, subfolder={_quoted(network)}, {dtype})",
        f"pipe = {layout.pipeline}.from_pretrained({_quoted(base)}, {network}={network}, {from_base})",
        f'pipe.scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")',
    ]


def _imports(*classes: str) -> list[str]:
    """Return the lines that import these classes of diffusers and transformers."""
    own = [name for name in classes if not name.startswith(_OF_TRANSFORMERS)]
    others = sorted(set(classes) - set(own))
    lines = ["import torch", f"from diffusers import {', '.join(sorted(own))}"]
    return [*lines, f"from transformers import {', '.join(others)}"] if others else lines


def student_line(name: str) -> str:
    return f"student = {_quoted(name)}"


def _quoted(text: str) -> str:
    """Return a string of Python in double quotes."""
    return json.dumps(text, ensure_ascii=False)
