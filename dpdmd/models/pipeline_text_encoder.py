"""Text encoders that the pipeline's own class runs."""

from pathlib import Path

from dpdmd.models.base import TextEncoder
from dpdmd.models.diffusers_family import DiffusersFamily
from dpdmd.models.loading import load_text_encoders


class PipelineTextEncoder(TextEncoder):
    """The text encoders of a pipeline folder in `pipe`, without the other weights; a family encodes by its methods."""

    def __init__(self, family: DiffusersFamily, folder: Path, max_sequence_length: int):
        self.device, self.max_sequence_length = family.device, max_sequence_length
        dtype, precision = family.compute_dtype, family.precisions.text_encoders
        encoders = load_text_encoders(family.layout, folder, dtype, precision, family.device)
        self.pipe = family.pipeline_class.from_pretrained(
            folder, transformer=None, vae=None, dtype=dtype, local_files_only=True, **encoders
        ).to(family.device)
