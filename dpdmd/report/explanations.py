"""What the page says about runs and curves: settings of teacher and student, and one line on each curve."""

from collections.abc import Sequence

from dpdmd.report.runs import Run
from dpdmd.report.scores import Metric

# Metric of an update -> its title, and what it is and how to read it.
_CURVES = {
    "loss_student": ("Student loss", "Sum of the student’s weighted losses."),
    "loss_dmd": (
        "DMD loss",
        "Half the mean square of the DMD gradient. It need not fall: its gradient moves the samples, not its value.",
    ),
    "loss_div": (
        "Diversity loss",
        "Distance of the student’s first step from the teacher’s anchor, before its weight. Lower is closer.",
    ),
    "div_weight": ("Weight of the diversity loss", "Lambda, where `--div_weight_schedule` changes it."),
    "loss_fake": (
        "Fake-score loss",
        "Denoising error on the student’s samples. It depends mostly on the drawn noise levels.",
    ),
    "dmd_gradient_norm": (
        "DMD gradient norm",
        "Norm of the difference of fake and real prediction, normalised as in the loss; mean over samples.",
    ),
    "score_error_cosine": (
        "Cosine of real and fake errors",
        "Near 1, the fake score knows the student’s samples as well as the teacher does.",
    ),
    "div_gradient_norm": (
        "Diversity gradient norm",
        "Of the weighted diversity loss on the student’s first step; to be compared with the DMD gradient norm.",
    ),
    "anchor_error": (
        "Anchor error",
        "Squared distance of the first step from the anchor, over the anchor’s own from 0. At 0 it is there.",
    ),
    "latent_mean": (
        "Mean of the student’s latents",
        "It stays near that of the teacher’s predictions if a run goes well.",
    ),
    "latent_mean_real": ("Mean of the teacher’s predictions", "Of the student’s noised samples."),
    "latent_std": (
        "Standard deviation of the student’s latents",
        "Steady if a run goes well. The teacher’s predictions differ from it, because guidance widens them.",
    ),
    "latent_std_real": ("Standard deviation of the teacher’s predictions", "Of the student’s noised samples."),
    "latent_saturated": ("Share of saturated latents", "Of the student’s latents, those farther than 4 from 0."),
    "grad_norm": ("Gradient norm", "Of the updated network, before clipping."),
    "grad_norm_discriminator": ("Gradient norm of the discriminator", "Before clipping."),
    "loss_perceptual": ("Perceptual loss", "Distance of the student’s images from the teacher’s of the same noise."),
    "loss_gan": (
        "Generator loss (GAN)",
        "Low if the discriminator takes the student’s samples for the teacher’s.",
    ),
    "loss_discriminator": ("Discriminator loss", "At 2 log 2 = 1.39, the discriminator cannot tell the samples apart."),
    "logit_real": ("Discriminator’s logit, teacher samples", "Above 0: taken for the teacher’s."),
    "logit_fake": ("Discriminator’s logit, student samples", "Above 0: taken for the teacher’s."),
    "lr": ("Learning rate", "Of the network that the update trains."),
}
# Metrics that only one kind of update has: their titles do not name it.
_ONE_KIND = ("loss", "logit", "discriminator", "dmd", "div", "score", "anchor", "latent")
_SHOWN_NAMES = 3


def curve(kind: str, name: str) -> tuple[str, str]:
    """Return the title of a metric of `kind` of update, and one line on it; "" for a metric that is not known."""
    title, about = _CURVES.get(name, (name.replace("_", " ").capitalize(), ""))
    return title if any(part in name for part in _ONE_KIND) else f"{title}, {kind} update", about


def score_curve(metric: Metric) -> str:
    """Return one line on the curve of a score."""
    if metric.diversity:
        return "1 − mean cosine over all pairs of a prompt’s images. It should stay close to the teacher’s."
    return "Mean over images and their prompts. Higher is better."


def settings(runs: Sequence[Run]) -> list[str]:
    """Return a line on teacher, student and steps, or a line for each group of runs in which these differ."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        if line := _settings(run):
            groups.setdefault(line, []).append(run.name)
    if len(groups) < 2:
        return list(groups)
    return [f"{_names(names)}: {line}" for line, names in groups.items()]


def _names(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return "; ".join([*names[:_SHOWN_NAMES], *([f"{more} more"] if more > 0 else [])])


def _settings(run: Run) -> str:
    """Return one run's line; "" if its configuration cannot be read."""
    names = ("teacher_infer_steps", "teacher_guidance_scale", "stu_inference_steps", "per_train_fake_num")
    teacher, scale, student, cycle = (run.config.get(name) for name in names)
    if None in (teacher, scale, student, cycle):
        return ""
    return (
        f"Teacher: {teacher} sampling steps with guidance {scale}. Student: {student} sampling steps without guidance. "
        f"A step of training is one update of one network: {cycle} of the fake score, then 1 of the student."
    )
