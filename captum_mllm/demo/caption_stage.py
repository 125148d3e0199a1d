r"""The main stage: the whole model learns to answer all questions about pictures of all views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_mllm.demo.architecture import Architecture
from captum_mllm.demo.caption_loss import caption_loss, draw_view, pictures_per_step
from captum_mllm.demo.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.pool import ScenePool, pictures_of

_STAGE = "captions"
_WINDOW = 4096


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

    The loss is :func:`~captum_mllm.demo.caption_loss.caption_loss`.

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
        view = draw_view(architecture, views, generator)
        count = pictures_per_step(architecture, view)
        examples = pools[phase].draw(generator, step, count)
        pictures = pictures_of(examples)
        return caption_loss(model, architecture, examples, pictures, view, vision=phase.vision)

    fit(model, model, step_loss, steps, 2e-3, checkpoint, _STAGE)
