"""The arithmetic of CUDA devices: one place decides on TF32 and on cuDNN's search."""

import torch


def set_cuda_arithmetic(bf16: bool) -> None:
    """How CUDA devices compute; nothing on a CPU reads these switches.

    No TF32: in fp32, fp32 is meant, and torch's own default would round what convolutions multiply to 10 bits. With
    `bf16` no product of the networks is left in fp32 (tests/integration/test_precision.py), so TF32 would speed up the
    scorers alone, whose scores are compared with the root programs'. Attention needs no switch: diffusers calls torch's
    scaled_dot_product_attention, without a mask, and torch takes its flash kernels for bf16 by itself.

    With `bf16` cuDNN measures which of its algorithms is the fastest for each shape. Only the decoder has
    convolutions worth that, and it meets a few shapes thousands of times. In fp32 it does not: the choice may differ
    between two runs, and with it an image's last bits.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = bf16
