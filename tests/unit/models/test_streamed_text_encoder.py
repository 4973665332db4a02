"""Text is encoded on a stream of its own, which training waits for."""

import torch
from torch import Tensor

from dpdmd.models import streamed_text_encoder
from dpdmd.models.base import TextEmbedding, TextEncoder


def test_text_is_encoded_on_a_stream_that_the_training_waits_for(monkeypatch):
    """Encoding happens inside the other stream; then the training's stream waits for it and keeps the embedding."""
    events = []

    class Stream:
        def __init__(self, *_, **__):
            pass

        def wait_stream(self, other):
            events.append(("training waits for", other))

    class Inside:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            events.append(("enter", self.stream))

        def __exit__(self, *_):
            events.append(("leave", self.stream))

    training = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: events.append(("kept for", stream)))
    text = TextEmbedding(torch.zeros(1, 2, 3), torch.zeros(1, 4))

    class Encoder(TextEncoder):
        def encode(self, prompts):
            events.append(("encode", prompts))
            return text

    encoder = streamed_text_encoder.StreamedTextEncoder(Encoder(), torch.device("cpu"))
    assert encoder.encode(["a"]) is text
    own = encoder.stream
    assert events == [
        ("enter", own),
        ("encode", ["a"]),
        ("leave", own),
        ("training waits for", own),
        ("kept for", training),
        ("kept for", training),
    ]
