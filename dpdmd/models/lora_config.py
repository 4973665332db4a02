"""What `--lora_rank` trains: an adapter for the student and one for the fake score. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter: rank, alpha (the update is B A alpha / rank), and its layers, by the ends of their names."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Adapters:
    """Those of the two trained networks."""

    student: Adapter
    fake: Adapter
