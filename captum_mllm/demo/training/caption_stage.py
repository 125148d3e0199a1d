r"""The main stage: the whole model learns to answer all questions about pictures of all views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_mllm.demo.training.caption_loss import caption_loss, pictures_per_step
from captum_mllm.demo.training.course import Course
from captum_mllm.demo.training.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.training.pool import pictures_of

_STAGE = "captions"


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


def train_captions(model: Any, course: Course, steps: int, checkpoint: Checkpoint) -> None:
    r"""Train the whole model on the answers to all questions, in place.

    The loss is :func:`~captum_mllm.demo.training.caption_loss.caption_loss`.

    Args:
        model (transformers.PreTrainedModel): The model.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    architecture = course.architecture
    pools = {
        phase: course.captioned(3, large=phase.all_views, objects=phase.objects)
        for phase in _CURRICULUM
    }

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        phase = [phase for phase in _CURRICULUM if step >= phase.start * steps][-1]
        generator = step_generator(course.seed, _STAGE, step)
        view = architecture.draw_view(generator, phase.all_views)
        count = pictures_per_step(architecture, view)
        examples = pools[phase].draw(generator, step, count)
        pictures = pictures_of(examples)
        return caption_loss(model, architecture, examples, pictures, view, vision=phase.vision)

    fit(model, model, step_loss, steps, 2e-3, checkpoint, _STAGE)
