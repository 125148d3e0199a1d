r"""The last stage: the whole model learns to answer all questions about pictures of all views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_mllm.demo.architecture import Architecture
from captum_mllm.demo.batches import answer_loss, hidden_states, text_batch
from captum_mllm.demo.image_words import group_logits, image_consistency_loss, image_word_loss
from captum_mllm.demo.language_stage import answer_accuracy
from captum_mllm.demo.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.pool import ScenePool, pictures_of

_STAGE = "captions"
_TOKENS_PER_STEP = 3500
_TEXT_TOKENS = 120
_WINDOW = 4096
_ENTERING_WEIGHT = 0.1
_LEAVING_WEIGHT = 0.15
_CONSISTENCY_WEIGHT = 0.2


@dataclass(frozen=True)
class _Phase:
    """What to train on from ``start``, a fraction of the stage, on.

    The number of objects is one to three if None; the vision tower changes only if ``vision``. The
    pictures come in all views if ``all_views``, rendered at twice the size; otherwise in those up
    to the native one.
    """

    start: float
    objects: int | None = None
    vision: bool = True
    all_views: bool = False


# The vision tower waits until the language model can read what it says.
_CURRICULUM = (
    _Phase(0.0, objects=1, vision=False),
    _Phase(0.03, vision=False),
    _Phase(0.06),
    _Phase(0.5, all_views=True),
)


def train_captions(
    model: Any,
    architecture: Architecture,
    seed: int,
    steps: int,
    prior: float,
    contact: float,
    checkpoint: Checkpoint,
) -> None:
    r"""Train the whole model on the answers to all questions, in place.

    Three losses on what the image tokens say (:mod:`captum_mllm.demo.image_words`) go with that of
    the answers, which does not reach the last states of the image tokens.

    Args:
        model (transformers.PreTrainedModel): The model.
        architecture (Architecture): Its architecture.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        contact (float): Share of the scenes in which objects touch, in 0 to 1.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    side = architecture.picture_size
    options = {"prior": prior, "contact": contact}
    pools = {
        phase: ScenePool(
            seed + 3,
            2 * side if phase.all_views else side,
            4 if phase.all_views else 8,
            _WINDOW,
            objects=phase.objects,
            **options,
        )
        for phase in _CURRICULUM
    }

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        phase = [phase for phase in _CURRICULUM if step >= phase.start * steps][-1]
        generator = step_generator(seed, _STAGE, step)
        views = [v for v in architecture.views if phase.all_views or v <= architecture.native_view]
        odds = np.array([architecture.views[view] for view in views])
        view = int(generator.choice(views, p=odds / odds.sum()))
        tokens = len(architecture.token_centers(view))
        examples = pools[phase].draw(
            generator, step, min(48, _TOKENS_PER_STEP // (tokens + _TEXT_TOKENS))
        )
        batch = text_batch([example.captions for example in examples], architecture, view)
        with torch.set_grad_enabled(phase.vision):
            features = architecture.features(model, pictures_of(examples), view)
        states = hidden_states(model, batch, features)
        loss, logits = answer_loss(model, batch, states)
        scenes = [example.scene for example in examples]
        embeddings = model.lm_head.weight
        entering = group_logits(embeddings, features)
        leaving = group_logits(embeddings, states[:, batch.image])
        image_loss = image_word_loss(leaving, scenes)
        consistency = image_consistency_loss(leaving, entering)
        total = loss + _LEAVING_WEIGHT * image_loss + _CONSISTENCY_WEIGHT * consistency
        if phase.vision:
            sharp = [3.0 * part for part in entering]
            total = total + _ENTERING_WEIGHT * image_word_loss(sharp, scenes)
        return total, {
            "answer": loss.item(),
            "image": image_loss.item(),
            "consistency": consistency.item(),
            **answer_accuracy(batch, logits),
        }

    fit(model, model, step_loss, steps, 2e-3, checkpoint, _STAGE)
