"""The methods as lists of loss terms, and the two turns that they share: `student_turn` and `fake_turn`.

A turn takes one micro-batch and returns its losses; optimizers, ranks and accumulation are the trainer's. Every
random draw is named by the step and by the sample's place in the global batch.
"""

from dataclasses import dataclass

from dpdmd.config.options import MethodConfig
from dpdmd.methods.loss_terms import (
    FakeTerm,
    Term,
    adversarial_term,
    discriminator_term,
    diversity_term,
    dmd_term,
    fake_score_term,
    perceptual_term,
)
from dpdmd.methods.update_schedule import is_student_update

STUDENT, FAKE, DISCRIMINATOR = "student", "fake", "discriminator"  # what is trained; the first two name turns as well


@dataclass(frozen=True)
class Method:
    """A row of the paper's comparison.

    Attributes:
        terms, fake_terms: what is summed in the student's and in the fake score's turn.
        detach_first_step: whether the latent is detached after step 1.
        trained_with_fake: what learns in the fake score's turn beside it.
        paired_turn: the turn that looks at the teacher's samples; "" where none does.
    """

    terms: tuple[Term, ...]
    detach_first_step: bool = False
    fake_terms: tuple[FakeTerm, ...] = (fake_score_term,)
    trained_with_fake: tuple[str, ...] = ()
    paired_turn: str = ""


METHODS = {
    "dpdmd": Method((dmd_term, diversity_term), detach_first_step=True),
    "dmd": Method((dmd_term,)),
    "dmd_lpips": Method((dmd_term, perceptual_term), paired_turn=STUDENT),
    "dmd_gan": Method(
        (dmd_term, adversarial_term),
        fake_terms=(fake_score_term, discriminator_term),
        trained_with_fake=(DISCRIMINATOR,),
        paired_turn=FAKE,
    ),
}


def trained_networks(config: MethodConfig) -> tuple[str, ...]:
    """Names of all that the method trains."""
    return (STUDENT, FAKE, *METHODS[config.method].trained_with_fake)


def networks_of_update(step: int, config: MethodConfig) -> tuple[str, ...]:
    """Names of what update `step` trains; the first gives the turn its name."""
    if is_student_update(step, config):
        return (STUDENT,)
    return (FAKE, *METHODS[config.method].trained_with_fake)


def uses_sample_pool(step: int, config: MethodConfig) -> bool:
    """Whether update `step` takes its prompts and start noises from the pool of teacher samples."""
    return bool(config.teacher_cache_size) and METHODS[config.method].paired_turn == networks_of_update(step, config)[0]
