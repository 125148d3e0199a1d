"""The stages that train the whole model on captions, and the loss that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.datasets.scenes import Scene
from captum_mllm.demo.training.architecture import IMAGE_MEAN, Architecture
from captum_mllm.demo.training.batches import answer_loss, hidden_states, text_batch
from captum_mllm.demo.training.course import Course, Example, images_of
from captum_mllm.demo.training.image_words import (
    OBJECT_AREA,
    group_logits,
    image_consistency_loss,
    image_echo_loss,
    image_loudness_loss,
    image_word_loss,
)
from captum_mllm.demo.training.language_stage import answer_accuracy
from captum_mllm.demo.training.optimization import Checkpoint, fit, step_generator

_TOKENS_PER_STEP = 3500
_TEXT_TOKENS = 120
_ENTERING_WEIGHT = 0.1
_LEAVING_WEIGHT = 0.15
_CONSISTENCY_WEIGHT = 0.2
_SHARPNESS = 3.0
# For the lens.
_POLISHED_ENTERING_WEIGHT = 0.3
_ECHO_WEIGHT = 0.03
_LOUDNESS_WEIGHT = 0.01


def images_per_step(architecture: Architecture, view: int) -> int:
    r"""How many images of a view make up a batch, so that all batches cost about the same."""
    tokens = len(architecture.token_centers(view))
    return max(1, min(48, _TOKENS_PER_STEP // (tokens + _TEXT_TOKENS)))


def caption_loss(
    model: Any,
    course: Course,
    examples: list[Example],
    images: npt.NDArray[np.uint8],
    view: int,
    vision: bool = True,
    zoom: float = 1.0,
    lens: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    r"""The loss of the answers to all questions about some images.

    Losses on what the image tokens say (:mod:`.image_words`) go with that of the answers,
    which does not reach the last states of the image tokens, unless the course is for answers only.

    Args:
        model (transformers.PreTrainedModel): The model.
        course (Course): The training run.
        examples (list[Example]): B scenes and their captions.
        images (numpy.ndarray): (B, S, S, 3), uint8: their images as the model sees them.
        view (int): How finely it sees them.
        vision (bool): Whether the vision tower is trained. Default: True
        zoom (float): How much larger than the image it is drawn. Default: 1.0
        lens (bool): Whether to add what polishes the logit lens: each object is due its own area
            instead of an average one, to which its rim comes closer than what is inside; tokens
            enter equally loud; and their logits in the end echo those on entering. Default: False

    Returns:
        tuple[Tensor, dict[str, float]]: The loss, a scalar, and figures for the report.
    """
    architecture = course.architecture
    batch = text_batch([example.captions for example in examples], architecture, view)
    with torch.set_grad_enabled(vision):
        features = architecture.features(model, images, view)
    states = hidden_states(model, batch, features)
    loss, logits = answer_loss(model, batch, states)
    if course.answers_only:
        return loss, {"answer": loss.item(), **answer_accuracy(batch, logits)}
    scenes = [example.scene for example in examples]
    embeddings = model.lm_head.weight
    entering = group_logits(embeddings, features)
    leaving = group_logits(embeddings, states[:, batch.image])
    area = None if lens else OBJECT_AREA
    image_loss = image_word_loss(leaving, scenes, area, zoom)
    consistency = image_consistency_loss(leaving, entering)
    total = loss + _LEAVING_WEIGHT * image_loss + _CONSISTENCY_WEIGHT * consistency
    if vision:
        sharp = [_SHARPNESS * part for part in entering]
        weight = _POLISHED_ENTERING_WEIGHT if lens else _ENTERING_WEIGHT
        total = total + weight * image_word_loss(sharp, scenes, area, zoom)
    figures = {
        "answer": loss.item(),
        "image": image_loss.item(),
        "consistency": consistency.item(),
        **answer_accuracy(batch, logits),
    }
    if lens:
        echo, loudness = image_echo_loss(leaving, entering), image_loudness_loss(entering)
        total = total + _ECHO_WEIGHT * echo + _LOUDNESS_WEIGHT * loudness
        figures |= {"echo": echo.item(), "loudness": loudness.item()}
    return total, figures


_STAGE = "captions"


@dataclass(frozen=True)
class _Phase:
    """What to train on from ``start``, a fraction of the stage, on.

    The number of objects is one to three if None; the vision tower changes only if ``vision``. The
    images come in all views if ``all_views``, rendered at twice the size; otherwise in those up
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

    The loss is :func:`caption_loss`.

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
        count = images_per_step(architecture, view)
        examples = pools[phase].draw(generator, step, count)
        images = images_of(examples)
        return caption_loss(model, course, examples, images, view, vision=phase.vision)

    fit(model, model, step_loss, steps, 2e-3, checkpoint, _STAGE)


def frame(
    images: npt.NDArray[np.uint8],
    scenes: list[Scene],
    zoom: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    r"""Draw images larger or smaller onto canvases of their size, each at a random place.

    What a smaller image leaves free has the processors' mean colour, with which LLaVA pads. Of a
    larger one the canvas shows a part that holds the objects, or some of them if they do not fit.

    Args:
        images (numpy.ndarray): (B, S, S, 3), uint8.
        scenes (list[Scene]): What they show.
        zoom (float): Side of the drawn images over that of the canvases, above 0.
        generator (numpy.random.Generator): Decides the places.

    Returns:
        numpy.ndarray: (B, S, S, 3), uint8.
    """
    side = images.shape[1]
    drawn = round(side * zoom)
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = F.interpolate(values, (drawn, drawn), mode="bicubic", antialias=True)
    enlarged = resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    margin = np.rint(255 * np.array(IMAGE_MEAN)).astype(np.uint8)
    framed = np.tile(margin, (len(images), side, side, 1))
    for canvas, image, scene in zip(framed, enlarged, scenes):
        top, left = (_corner(scene, axis, drawn, side, generator) for axis in ("y", "x"))
        part = image[max(0, top) : top + side, max(0, left) : left + side]
        down, right = max(0, -top), max(0, -left)
        canvas[down : down + part.shape[0], right : right + part.shape[1]] = part
    return framed


def _corner(scene: Scene, axis: str, drawn: int, side: int, generator: np.random.Generator) -> int:
    """Where the canvas begins on the drawn image, in pixels; before it if negative."""
    free = drawn - side
    if free <= 0:
        return int(generator.integers(free, 1))
    first = min(getattr(thing, axis) - thing.radius for thing in scene.objects) * drawn
    last = max(getattr(thing, axis) + thing.radius for thing in scene.objects) * drawn
    low, high = sorted((last - side, first))
    return int(np.clip(np.rint(generator.uniform(low, high)), 0, free))


def polish(
    model: Any,
    course: Course,
    steps: int,
    checkpoint: Checkpoint,
    lens: bool = True,
) -> None:
    r"""Go on with the captions, in place: of zoomed images, and with a better lens.

    An architecture with zooms sees the images smaller and larger; what it sees larger has one
    object, which stays whole.

    Args:
        model (transformers.PreTrainedModel): The model.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
        lens (bool): As for :func:`caption_loss`. Default: True
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
        examples = pool.draw(generator, step, images_per_step(architecture, view))
        images = images_of(examples)
        if zoom != 1:
            images = frame(images, [example.scene for example in examples], zoom, generator)
        return caption_loss(model, course, examples, images, view, zoom=zoom, lens=lens)

    fit(model, model, step_loss, steps, 7e-4, checkpoint, stage)
