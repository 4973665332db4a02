"""The number format in which networks compute, and the arithmetic of CUDA devices: every program decides both here."""

import torch

from dpdmd.utils.library_settings import ARITHMETIC, check_attention_variable, check_settings


def compute_dtype(bf16: bool) -> torch.dtype:
    """Return the type in which networks compute with or without `--bf16`."""
    return torch.bfloat16 if bf16 else torch.float32


def set_up(bf16: bool) -> torch.dtype:
    """Set how CUDA devices compute, and return the compute type. The switches do not affect a CPU.

    No TF32: fp32 means fp32. torch's default would round the factors of convolutions to 10 bits. With `bf16` the
    networks have no product in fp32 (tests/integration/test_precision.py), so TF32 would only speed up the scorers,
    whose scores must equal those of the root programs. Attention needs no switch: diffusers calls torch's
    scaled_dot_product_attention, for which torch chooses a fused kernel in bf16, its flash kernel if there is no mask.

    With `bf16` cuDNN measures which algorithm is fastest for each shape. Only the decoder has convolutions that profit,
    and it meets a few shapes thousands of times. In fp32 cuDNN does not measure: its choice, and with it the last bits
    of an image, may differ between two runs.

    Raises:
        ValueError: an environment variable overrides these switches, or diffusers cannot read it; one line names it.
    """
    check_settings(ARITHMETIC)
    check_attention_variable()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = bf16
    return compute_dtype(bf16)
