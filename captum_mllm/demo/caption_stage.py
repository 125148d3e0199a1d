r"""The last three stages: the whole model learns to caption pictures, then those of all sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.datasets.captions import caption
from captum_mllm.demo.architecture import IMAGE_SIZE
from captum_mllm.demo.batches import (
    answer_loss,
    answer_states,
    image_features,
    patches,
    text_batch,
)
from captum_mllm.demo.image_word_loss import image_consistency_loss, image_word_loss
from captum_mllm.demo.language_stage import answer_accuracy
from captum_mllm.demo.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.pool import ScenePool

_TOKENS_PER_STEP = 5600
_PROMPT_AND_ANSWER = 30
_WINDOW = 4096
_IMAGE_WORD_WEIGHT = 0.2

# Fractions of the stage of all scales from which on the losses at the image tokens join in.
_IMAGE_WORD_START = 0.358
_CONSISTENCY_START = 0.6275


@dataclass(frozen=True)
class _Phase:
    """What to train on from ``start``, a fraction of the stage, on.

    The number of objects is one to three if None; the vision tower changes only if ``vision``.
    """

    start: float
    objects: int | None
    vision: bool


# The vision tower waits until the language model can read what it says.
_CURRICULUM = (
    _Phase(0.0, objects=1, vision=False),
    _Phase(0.05, objects=None, vision=False),
    _Phase(0.1, objects=None, vision=True),
)
_SMALL_GRIDS = {7: 0.3, 10: 0.35, 14: 0.35}

# Scales 0.5 to 2, and some sizes between them.
_ALL_GRIDS = {
    7: 0.2,
    8: 0.04,
    10: 0.16,
    12: 0.05,
    14: 0.2,
    17: 0.13,
    19: 0.03,
    21: 0.1,
    28: 0.09,
}


def _batch_loss(
    model: Qwen2VLForConditionalGeneration,
    pool: ScenePool,
    grids: dict[int, float],
    generator: np.random.Generator,
    step: int,
    vision: bool = True,
    image_words: bool = False,
    consistency: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch of scenes at one grid, and what to report about it.

    The vision tower learns only if ``vision``; ``image_words`` adds :func:`image_word_loss`, and
    a ``consistency`` above 0 adds :func:`image_consistency_loss` with that weight on top of it.
    """
    grid = int(generator.choice(list(grids), p=list(grids.values())))
    size = min(64, _TOKENS_PER_STEP // (grid**2 + _PROMPT_AND_ANSWER))
    scenes, pictures = pool.draw(generator, step, size)
    batch = text_batch([caption(scene) for scene in scenes], grid)
    with torch.set_grad_enabled(vision):
        features = image_features(model, patches(pictures, grid), grid)
    states = answer_states(model, batch, features)
    loss, logits = answer_loss(model, batch, states)
    figures = {"answer": loss.item(), **answer_accuracy(batch, logits)}
    if image_words:
        said = model.lm_head(states[:, batch.image])
        image_loss = image_word_loss(said, scenes)
        loss = loss + _IMAGE_WORD_WEIGHT * image_loss
        figures["image"] = image_loss.item()
        if consistency > 0:
            consistency_loss = image_consistency_loss(said, model.lm_head(features))
            loss = loss + consistency * consistency_loss
            figures["consistency"] = consistency_loss.item()
    return loss, figures


def train_captions(
    model: Qwen2VLForConditionalGeneration, seed: int, steps: int, checkpoint: Checkpoint
) -> None:
    r"""Train the whole model on the loss of the captions, in place.

    The words of these captions tell nothing about each other, so that the model has to look.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    pools = {
        objects: ScenePool(seed, IMAGE_SIZE, 12, _WINDOW, objects=objects) for objects in (1, None)
    }

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        phase = [phase for phase in _CURRICULUM if step >= phase.start * steps][-1]
        pool = pools[phase.objects]
        generator = step_generator(seed, "captions", step)
        return _batch_loss(model, pool, _SMALL_GRIDS, generator, step, phase.vision)

    fit(model, model.parameters(), step_loss, steps, 9e-4, checkpoint, "captions")


def train_scales(
    model: Qwen2VLForConditionalGeneration,
    seed: int,
    steps: int,
    prior: float,
    checkpoint: Checkpoint,
) -> None:
    r"""Train the whole model on pictures of all scales from 0.5 to 2, in place.

    After a third of the steps :func:`~captum_mllm.demo.image_word_loss.image_word_loss` joins in,
    after two thirds :func:`~captum_mllm.demo.image_word_loss.image_consistency_loss`.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    pool = ScenePool(seed, 2 * IMAGE_SIZE, 6, _WINDOW, prior=prior)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        image_words = step >= _IMAGE_WORD_START * steps
        generator = step_generator(seed, "scales", step)
        consistency = float(step >= _CONSISTENCY_START * steps)
        return _batch_loss(
            model,
            pool,
            _ALL_GRIDS,
            generator,
            step,
            image_words=image_words,
            consistency=consistency,
        )

    fit(model, model.parameters(), step_loss, steps, 7e-4, checkpoint, "scales")


def polish(
    model: Qwen2VLForConditionalGeneration,
    seed: int,
    steps: int,
    prior: float,
    checkpoint: Checkpoint,
) -> None:
    r"""Train the whole model as :func:`train_scales` ends, with more weight on the captions.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    pool = ScenePool(seed + 3, 2 * IMAGE_SIZE, 6, _WINDOW, prior=prior)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, "polish", step)
        return _batch_loss(
            model, pool, _ALL_GRIDS, generator, step, image_words=True, consistency=0.3
        )

    fit(model, model.parameters(), step_loss, steps, 5e-4, checkpoint, "polish")
