"""Text encoding beside the training on a GPU, so that what its library waits for is its own work alone."""

import torch

from dpdmd.models.base import TextEmbedding, TextEncoder


class StreamedTextEncoder(TextEncoder):
    """An encoder that works on a CUDA stream of its own, before what the training's stream has still to do.

    The libraries' encoders copy token ids from ordinary memory and wait for their stream. On the training's that
    would be for the whole step before.
    """

    def __init__(self, encoder: TextEncoder, device: torch.device):
        self.encoder, self.device = encoder, device
        self.stream = torch.cuda.Stream(device, priority=-1)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        training = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            text = self.encoder.encode(prompts)
        training.wait_stream(self.stream)
        for value in (text.context, text.pooled):
            value.record_stream(training)  # its memory is not to be used again before the training has read it
        return text
