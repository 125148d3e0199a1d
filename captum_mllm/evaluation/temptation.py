"""``tempted_words``: words of captions that tempt a model to name what the image does not show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from captum_mllm.datasets import (
    BACKGROUND,
    COLORS,
    SHAPES,
    Caption,
    Scene,
    caption,
    counterfactual,
    render,
    sample_scene,
)
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.evaluation.examples import Split

Change = Literal["none", "removed", "exchanged"]

_STYLE = "dense"
# Apart from the streams of the benchmark.
_STREAMS: dict[Split, int] = {"development": 6, "test": 7}


@dataclass(frozen=True, eq=False)
class TemptedCaption:
    r"""
    An image and a caption of the scene before one of its objects was changed.

    The caption names the object twice: after words that predict it, as scenes have a full language
    prior, and once more after the caption has already named it, which is a wrong first sentence
    where the object is gone.

    Args:
        number (int): which scene.
        change (str): ``"none"``; ``"removed"``; or ``"exchanged"`` for another object, so that
            something is where the caption has the usual companion.
        scene (Scene): what the image shows.
        caption (Caption): of the scene before the change.
        labels (dict[int, bool]): for the places of words whose truth is known, shapes and colours
            of objects, whether the image shows what they name.
    """

    number: int
    change: Change
    scene: Scene
    caption: Caption
    labels: dict[int, bool]

    @property
    def image(self) -> Image.Image:
        """The image, 8 bits a channel."""
        return Image.fromarray(render(self.scene).image)

    @property
    def prompt(self) -> str:
        """The question."""
        return DEMO_PROMPTS[_STYLE]

    @property
    def answer(self) -> str:
        """The caption's text."""
        return str(self.caption)


def tempted_captions(
    numbers: Iterable[int], split: Split = "development", seed: int = 0
) -> list[TemptedCaption]:
    r"""
    Captions of scenes before and after their second object is removed or exchanged.

    Args:
        numbers (Iterable[int]): which scenes, from 0 upwards.
        split (str): ``"development"`` to fit a calibration, ``"test"`` to report. Default:
            "development"
        seed (int): which scenes. Default: 0

    Returns:
        list[TemptedCaption]: three for each scene whose second object has a shape of its own.

    Raises:
        ValueError: for another split.

    Examples::

        >>> found = tempted_captions(range(3))
        >>> [each.change for each in found[:3]]
        ['none', 'removed', 'exchanged']
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}, expected one of {', '.join(get_args(Split))}")
    found = []
    for number in numbers:
        generator = np.random.default_rng([_STREAMS[split], seed, number])
        scene = sample_scene(generator, objects=int(generator.integers(2, 4)), prior=1.0)
        index = scene.reading_order()[1]
        gone = scene.objects[index]
        if [thing.shape for thing in scene.objects].count(gone.shape) > 1:
            continue
        spoken = caption(scene, _STYLE)
        other = _other(generator, scene)
        exchanged = replace(gone, shape=other[0], color=other[1])
        scenes: dict[Change, Scene] = {
            "none": scene,
            "removed": counterfactual(scene, index),
            "exchanged": counterfactual(scene, index, exchanged),
        }
        for change, shown in scenes.items():
            labels = _labels(spoken, scene, shown)
            found.append(TemptedCaption(number, change, shown, spoken, labels))
    return found


def _other(generator: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A shape and a colour that the scene does not have."""
    shapes = [shape for shape in SHAPES if shape not in {t.shape for t in scene.objects}]
    colors = [color for color in COLORS if color not in {t.color for t in scene.objects}]
    return (
        shapes[int(generator.integers(len(shapes)))],
        colors[int(generator.integers(len(colors)))],
    )


def _labels(spoken: Caption, before: Scene, shown: Scene) -> dict[int, bool]:
    """Whether the image shows the shape or the colour that each word names."""
    there = {thing.shape for thing in shown.objects} | {thing.color for thing in shown.objects}
    named = {thing.shape for thing in before.objects} | {thing.color for thing in before.objects}
    return {
        place: word in there
        for place, (word, things) in enumerate(zip(spoken.words, spoken.objects))
        if len(things) == 1 and things[0] != BACKGROUND and word in named
    }
