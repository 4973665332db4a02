"""Text encoders that the pipeline's own class runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dpdmd.models.base import TextEncoder
from dpdmd.models.diffusers_family import DiffusersFamily
from dpdmd.models.loading import load_text_encoders


class PipelineTextEncoder(TextEncoder):
    """The text encoders of a pipeline folder in `pipe`, without the other weights; a family encodes by its methods.

    Attributes:
        options: more arguments of the pipeline's `from_pretrained`.
    """

    options: Mapping[str, Any] = {}

    def __init__(self, family: DiffusersFamily, folder: Path, max_sequence_length: int, *, no_t5: bool = False):
        self.device, self.max_sequence_length = family.device, max_sequence_length
        layout, present = family.layout, family.layout.components(folder, no_t5=no_t5)
        # diffusers needs an explicit None for a missing T5, even if the folder's own index has it as null.
        left_out = dict.fromkeys([layout.network, "vae", *(name for name in layout.t5 if name not in present)])
        parts = left_out | self.load_encoders(family, folder, no_t5=no_t5)
        self.pipe = family.pipeline_class.from_pretrained(
            folder, dtype=family.compute_dtype, local_files_only=True, **self.options, **parts
        ).to(family.device)

    def load_encoders(self, family: DiffusersFamily, folder: Path, *, no_t5: bool) -> dict[str, nn.Module]:
        """Load the networks of the text encoders, by component."""
        precision = family.precisions.text_encoders
        return load_text_encoders(family.layout, folder, family.compute_dtype, precision, family.device, no_t5=no_t5)
