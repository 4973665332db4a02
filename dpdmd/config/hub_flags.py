"""Flags about models on the Hugging Face Hub, once for training and for the other programs. Imports nothing heavy."""

import argparse
from dataclasses import dataclass

HELP = {  # flag -> its meaning
    "revision": "branch, tag or commit of the {model} on the Hub; of any other id: org/name@revision",
    "variant": "variant of the pipeline's weights, such as fp16: every component must have it",
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


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags for a program that samples from `--model`."""
    group = parser.add_argument_group("models from the Hub, given as org/name")
    for name in ("revision", "variant", "cache_dir"):
        group.add_argument(f"--{name}", help=HELP[name].format(model="--model"))
    group.add_argument("--download", action=argparse.BooleanOptionalAction, default=False, help=HELP["download"])
