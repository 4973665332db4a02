"""Flags about models on the Hugging Face Hub, once for training and for the other programs. Imports nothing heavy."""

import argparse
from dataclasses import dataclass

from dpdmd.utils.paths import user_path

HELP = {  # flag -> its meaning
    "revision": "branch, tag or commit of the {model} on the Hub; of any other id: org/name@revision",
    "variant": "variant of the weights of the {model}, such as fp16: every component must have it",
    "cache_dir": "the Hub's cache; without it HF_HUB_CACHE, else HF_HOME/hub",
    "download": "fetch models that the Hub's cache lacks; without it no request is made",
}


@dataclass(frozen=True)
class HubOptions:
    """The values of these flags."""

    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    download: bool = False

    @classmethod
    def of(cls, values: object) -> "HubOptions":
        """Return the options that are attributes of `values`: parsed arguments, or the group of the configuration."""
        return cls(**{name: getattr(values, name) for name in HELP})


def add_model_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Declare --model, which `several` makes a list, and --base_model."""
    parser.add_argument(
        "--model",
        type=user_path,
        action="append" if several else "store",
        required=True,
        help="run folder, checkpoint, pipeline or LoRA folder, a network's file, or org/name on the Hub"
        + "; give it once for each student" * several,
    )
    parser.add_argument(
        "--base_model",
        type=user_path,
        help="pipeline that a LoRA or a network alone was trained from: a folder, or org/name",
    )


def add_hub_flags(parser: argparse.ArgumentParser, model: str = "--model") -> None:
    """Declare the flags for a program that samples; `--revision` and `--variant` are those of the flag `model`."""
    group = parser.add_argument_group("models from the Hub, given as org/name")
    for name in ("revision", "variant", "cache_dir"):
        group.add_argument(f"--{name}", type=_not_empty, help=HELP[name].format(model=model))
    group.add_argument("--download", action=argparse.BooleanOptionalAction, default=False, help=HELP["download"])


def _not_empty(text: str) -> str:
    """Return a flag's value.

    Raises:
        argparse.ArgumentTypeError: the value is empty, as of a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a value, or leave it out")
    return text
