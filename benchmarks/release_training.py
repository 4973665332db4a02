"""The training and evaluation of the authors' release, on this package's parts: the baseline of train_step.py.

Written from reading the release (its trainer, its two evaluation programs and its launch script). A training step:

- encodes text three times, for student, fake score and teacher, the last with its unconditional half: four passes of
  the encoders over the batch, where one pass and the stored empty prompt suffice;
- recomputes activations (its sharding plug-in does so once more; not on one process, and not here), without compiling;
- runs the teacher's own steps to the anchor, and a roll-out for each fake-score update;
- decodes and saves each image of a student update by itself, as PNG.

An evaluation saves the student's weights. Then for each of two prompt files it runs diversity, nine images a prompt in
batches of 4, and preference, one image a prompt in batches of 4. Each of these four times it loads the whole pipeline,
text encoders included, the student's weights and the scorers. CLIP and DINO get the nine images of a prompt at a time,
PickScore all images in one forward pass, ImageReward one image a call, all in fp32, over all prompts of both files.

Everything else, such as sampler, decoder, scorer classes, optimizers and precision, is this package's. Left out, in
favour of the release: its prints and wandb at every step.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dpdmd.config.options import MethodConfig
from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.models.base import TextEmbedding
from dpdmd.sampling.load_model import load_sampler
from dpdmd.sampling.sampler import batches_of
from dpdmd.training.trainer import Trainer
from dpdmd.utils.image_grid import labelled_grid, save_image, to_pil

GEN_BATCH, NUM_SEEDS = 4, 9
# Its script evaluates every 100 steps, with ten images of each prompt of two files in four network calls each. The
# files: 100 captions, and Pick-a-Pic's test prompts, at most 500, of which it takes a part that it does not hold. With
# 300 of them that is 16,000 calls, with 500 24,000, where 100 steps of 8 x 4 samples at K = 10 are 42,133. Here a half.
EVAL_EVERY, EVAL_SHARE = 100, 0.5


def as_released(method: MethodConfig) -> MethodConfig:
    """Return `method` with the teacher's own steps to the anchor, and a roll-out for each fake-score update."""
    return replace(method, anchor_steps=None, fake_rollout_reuse=1)


def cycle(trainer: Trainer, first: int) -> None:
    """Run one cycle of updates, beginning with step `first`."""
    run, own = trainer.run, trainer.config.method
    encode, networks, size = trainer.text_encoder.encode, trainer.run.networks, trainer.config.optim.batch_size

    def three_times(prompts: list[str]) -> TextEmbedding:
        encode(prompts)
        encode(prompts)
        encode([""] * len(prompts))
        return encode(prompts)

    trainer.config.method = as_released(own)
    trainer.run = replace(run, config=trainer.config.method)
    trainer.text_encoder.encode = three_times
    for network in (networks.student, networks.fake):
        network.enable_gradient_checkpointing()
    try:
        for step in range(first, first + trainer.config.method.per_train_fake_num + 1):
            trainer.take_step(step)
        for index in range(size):
            image = trainer.decoder.decode(torch.zeros(1, *trainer.run.latent_shapes[0]))
            save_image(to_pil(image)[0], trainer.folder.process_vis / f"stu_{index}.png")
    finally:
        trainer.config.method, trainer.run = own, run
        trainer.text_encoder.encode = encode
        for network in (networks.student, networks.fake):
            network.disable_gradient_checkpointing()


def num_prompts(calls_a_cycle: int, batch_size: int, cycle_length: int) -> int:
    """Return the prompts in each file for which evaluation has EVAL_SHARE of the calls of EVAL_EVERY steps."""
    training = EVAL_EVERY / cycle_length * calls_a_cycle * batch_size
    return max(1, round(EVAL_SHARE * training / (2 * (NUM_SEEDS + 1) * GEN_BATCH)))


def evaluate(trainer: Trainer, files: Sequence[Sequence[str]], paths: dict[str, dict[str, Path]], work: Path) -> None:
    """Run one evaluation over the prompts of all `files`; `paths` is scorer -> its files."""
    weights = work / "student_transformer.pt"
    torch.save(trainer.run.networks.student.state_dict(), weights)
    for prompts in files:
        _diversity(trainer, prompts, paths, weights, work)
        _preference(trainer, prompts, paths, weights, work)


def _sampler(trainer: Trainer, weights: Path):
    config = trainer.config
    return load_sampler(
        weights,
        trainer.accelerator.device,
        base_model=Path(config.model.teacher_id),
        dtype=trainer.run.family.compute_dtype,
        height=config.data.height,
        width=config.data.width,
        max_sequence_length=config.data.max_sequence_length,
    )


def _scorer(trainer: Trainer, paths: dict[str, dict[str, Path]], name: str) -> Scorer:
    scorer = build_scorer(name, paths[name], trainer.accelerator.device)
    scorer.network.float()
    return scorer


def _diversity(trainer: Trainer, prompts: Sequence[str], paths: dict, weights: Path, work: Path) -> None:
    sampler, encoder = _sampler(trainer, weights)
    scorers = [_scorer(trainer, paths, name) for name in ("div_clip", "div_dino")]
    batches = batches_of(1, NUM_SEEDS, GEN_BATCH)
    for index, prompt in enumerate(prompts):
        samples = [
            Sample(image, prompt, key)
            for keys, made in sampler.sweep(encoder, [prompt], batches, trainer.config.run.seed)
            for key, image in zip(keys, to_pil(made), strict=True)
        ]
        for scorer in scorers:
            diversity_per_image(scorer.features(samples))
        grid = labelled_grid([[sample.image for sample in samples]], [prompt], columns=3)
        save_image(grid, work / "diversity" / f"{index}_grid.png")


def _preference(trainer: Trainer, prompts: Sequence[str], paths: dict, weights: Path, work: Path) -> None:
    sampler, encoder = _sampler(trainer, weights)
    batches = batches_of(len(prompts), 1, GEN_BATCH)
    samples = []
    for keys, made in sampler.sweep(encoder, prompts, batches, trainer.config.run.seed):
        for key, image in zip(keys, to_pil(made), strict=True):
            save_image(image, work / "preference" / f"{key[0]}.png")
            samples.append(Sample(image, prompts[key[0]], key))
    _scorer(trainer, paths, "pickscore").score(samples)
    imagereward = _scorer(trainer, paths, "imagereward")
    for sample in samples:
        imagereward.score([sample])
