"""Text encoding on a CUDA stream of its own, so that the library's synchronisation does not wait for the training."""

import torch

from dpdmd.models.base import TextEmbedding, TextEncoder


class StreamedTextEncoder(TextEncoder):
    """An encoder on a CUDA stream of its own, with priority over the work queued on the training's stream.

    The libraries' encoders copy token ids from pageable memory and then wait for their stream. On the training's stream
    this would wait for the whole previous step.
    """

    def __init__(self, encoder: TextEncoder, device: torch.device):
        self.encoder, self.device = encoder, device
        self.stream = torch.cuda.Stream(device, priority=-1)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        training = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            text = self.encoder.encode(prompts)
        training.wait_stream(self.stream)
        for value in text.tensors().values():
            value.record_stream(training)  # keeps the memory until the training has read it
        return text
