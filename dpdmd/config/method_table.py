"""The methods, one row each: loss terms, trained networks, flags, requirements and exclusions. Imports nothing heavy.

To add a method, add a row to `METHODS`, and its loss terms to `dpdmd/methods/loss_terms.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

STUDENT, FAKE, DISCRIMINATOR = "student", "fake", "discriminator"  # trained networks; the first two name updates too


@dataclass(frozen=True)
class Method:
    """A row of the paper's comparison (table 1).

    Attributes:
        student_terms, fake_terms: names of the loss terms that a student update and a fake-score update sum.
        trained_with_fake: networks that a fake-score update trains beside the fake score.
        detach_first_step: whether the latent is detached after step 1 if `--detach_first_step` is not given.
        teacher_samples_in: the update, STUDENT or FAKE, that compares with teacher samples; "" if none does.
        options: flags that only this method reads, and other methods whose rows name them.
        required: flag -> what it gives. The method needs the flag; a method without it rejects the flag.
        excluded: switch -> why the method cannot run with it.
        excludes_fsdp: why the method cannot run under FSDP; "" if it can.
    """

    student_terms: tuple[str, ...]
    fake_terms: tuple[str, ...] = ("fake_score",)
    trained_with_fake: tuple[str, ...] = ()
    detach_first_step: bool = False
    teacher_samples_in: str = ""
    options: tuple[str, ...] = ()
    required: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    excludes_fsdp: str = ""


METHODS = {
    "dpdmd": Method(
        student_terms=("dmd", "diversity"),
        detach_first_step=True,
        options=("div_weight", "div_weight_schedule", "k_anchor", "anchor_steps"),
    ),
    "dmd": Method(student_terms=("dmd",)),
    "dmd_lpips": Method(
        student_terms=("dmd", "perceptual"),
        teacher_samples_in=STUDENT,
        options=("perceptual", "perceptual_weight"),
        required={"perceptual_path": "the folder with the weights of --perceptual"},
        excluded={"offload_vae": "the gradient of every student update runs through the decoder"},
    ),
    "dmd_gan": Method(
        student_terms=("dmd", "adversarial"),
        fake_terms=("fake_score", "discriminator"),
        trained_with_fake=(DISCRIMINATOR,),
        teacher_samples_in=FAKE,
        options=("gan_weight", "gan_features", "lr_discriminator"),
        excluded={"compile": "the discriminator reads features that compiled blocks do not expose"},
        excludes_fsdp="sharded blocks expose no features, and give no gradient to a sample alone",
    ),
}


def detaches_first_step(method: str, flag: bool | None) -> bool:
    """Return whether the latent is detached after step 1: `--detach_first_step` if it is given, else the method's."""
    return METHODS[method].detach_first_step if flag is None else flag
