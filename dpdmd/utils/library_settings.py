"""Environment variables that make a library do what our flags decide, or what our code cannot work with.

Imports nothing heavy, because programs check their input before they import torch. docs/training.md lists the variables
that change nothing.
"""

import os
from collections.abc import Iterable
from importlib import import_module
from typing import NamedTuple

from dpdmd.utils.error_lines import shorten_error

TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("false", "0", "n", "no", "f", "off")


class Setting(NamedTuple):
    """A variable that a library reads.

    Attributes:
        allowed: values in lower case. The first one is the library's default.
        reason: why other values are an error.
        entry: the entry of accelerate's file for which accelerate's launcher sets the variable, if there is one.
    """

    variable: str
    allowed: tuple[str, ...]
    reason: str
    entry: str = ""


_FP32 = "fp32 means fp32 here, and --bf16 is the faster arithmetic"
ARITHMETIC = (
    Setting("NVIDIA_TF32_OVERRIDE", ("0",), _FP32),
    Setting("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", FALSE, _FP32),
)
COMPILATION = (  # with --compile
    Setting("TORCH_COMPILE_DISABLE", ("0",), "--compile is given"),
    Setting("TORCHDYNAMO_DISABLE", ("0",), "--compile is given"),
    Setting("TORCHINDUCTOR_USE_FAST_MATH", ("0",), "--compile must not change the results"),
)


def check_settings(settings: Iterable[Setting]) -> None:
    """Check that every variable of `settings` that is set has an allowed value.

    Raises:
        ValueError: one line that names the variable, its entry in accelerate's file, and what to do.
    """
    for setting in settings:
        value = os.environ.get(setting.variable)
        if value is None or value.lower() in setting.allowed:
            continue
        remedy = "unset it"
        if setting.entry:
            remedy = f"set it to '{setting.allowed[0]}' there, or {remedy}" if setting.allowed else "remove it there"
        name = f"accelerate's {setting.entry} ({setting.variable})" if setting.entry else setting.variable
        raise ValueError(f"{name} is {value[:40]}, but {setting.reason}: {remedy}")


def check_import(prefix: str, module: str) -> None:
    """Import a module of a library that reads variables and fails on a wrong one, if such a variable is set.

    The library itself knows which values its version can read. Without such a variable nothing is imported.

    Args:
        prefix: beginning of the names of the variables.

    Raises:
        ValueError: the module cannot be imported; one line that names the variables.
    """
    given = ", ".join(f"{name}={value[:40]}" for name, value in os.environ.items() if name.startswith(prefix))
    if not given:
        return
    try:
        import_module(module)
    except (AttributeError, ImportError, OSError, TypeError, ValueError) as error:
        library = module.partition(".")[0]
        raise ValueError(f"{given}: {library} cannot read it ({shorten_error(error)}); correct or unset it") from None


def check_torch_variables() -> None:
    """Check the variables at which torch's import fails or ends the process. Call this before any import of torch.

    Raises:
        ValueError: torch cannot read one; one line that names it.
    """
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        value = os.environ.get(name, "").strip()
        # Commas separate the pairs, and also those of a list in brackets. torch skips empty ones, but not the last.
        pairs = value.removesuffix(",").split(",")
        unpaired = [pair for pair in pairs if pair.strip(" ]") and not pair.partition(":")[2].strip()]
        if value and (unpaired or not pairs[-1].strip()):
            raise ValueError(
                f"{name}={value[:40]}: torch reads only pairs such as expandable_segments:True; correct or unset it"
            )
    check_import("TORCH_DISTRIBUTED_DEBUG", "torch.distributed")
    check_import("TORCH_LOGS", "torch")


def check_attention_variable() -> None:
    """Check the variable that diffusers reads when it is imported. Call this before any import of diffusers.

    Raises:
        ValueError: diffusers does not know the value.
    """
    check_import("DIFFUSERS_ATTN_BACKEND", "diffusers.models.attention_dispatch")
