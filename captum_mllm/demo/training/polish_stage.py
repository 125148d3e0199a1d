r"""The last stages: towers of one resolution see other zooms, and the lens is polished."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_mllm.demo.training.caption_loss import caption_loss, pictures_per_step
from captum_mllm.demo.training.course import Course
from captum_mllm.demo.training.framing import frame
from captum_mllm.demo.training.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.training.pool import pictures_of


def polish(
    model: Any,
    course: Course,
    steps: int,
    checkpoint: Checkpoint,
    lens: bool = True,
) -> None:
    r"""Go on with the captions, in place: of zoomed pictures, and with a better lens.

    An architecture with zooms sees the pictures smaller and larger; what it sees larger has one
    object, which stays whole.

    Args:
        model (transformers.PreTrainedModel): The model.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
        lens (bool): As for :func:`~captum_mllm.demo.training.caption_loss.caption_loss`. Default: True
    """
    stage = "polish" if lens else "zooms"
    architecture = course.architecture
    several, single = course.captioned(4), course.captioned(4, objects=1)
    zooms = list(architecture.zooms)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(course.seed, stage, step)
        view = architecture.draw_view(generator)
        zoom = float(generator.choice(zooms, p=list(architecture.zooms.values())))
        pool = single if zoom > 1 else several
        examples = pool.draw(generator, step, pictures_per_step(architecture, view))
        pictures = pictures_of(examples)
        if zoom != 1:
            pictures = frame(pictures, [example.scene for example in examples], zoom, generator)
        return caption_loss(model, architecture, examples, pictures, view, zoom=zoom, lens=lens)

    fit(model, model, step_loss, steps, 7e-4, checkpoint, stage)
