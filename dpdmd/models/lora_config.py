"""What `--lora_rank` trains: an adapter for the student and one for the fake score. Imports nothing heavy."""

from dataclasses import dataclass

from dpdmd.config.options import ModelConfig
from dpdmd.models.layout import LAYOUTS


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


def adapters(model: ModelConfig) -> Adapters | None:
    """The two adapters that the flags ask for; None where whole networks are trained."""
    if model.lora_rank is None:
        return None
    targets = tuple(model.lora_targets.split(",")) if model.lora_targets else LAYOUTS[model.family].lora_targets
    fake_rank = model.fake_lora_rank or model.lora_rank
    # A fake score of another rank keeps the student's ratio of alpha to rank, so that both learn at one pace.
    ratio = (model.lora_alpha or model.lora_rank) / model.lora_rank
    return Adapters(
        Adapter(model.lora_rank, ratio * model.lora_rank, targets), Adapter(fake_rank, ratio * fake_rank, targets)
    )
