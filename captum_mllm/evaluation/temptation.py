"""``tempted_captions`` and ``leading_questions``: answers that tempt a model to name what the image
does not show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from captum_mllm._options import check_choice
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
from captum_mllm.datasets.phrasing import Phrasing, article, natural
from captum_mllm.datasets.sampling import TYPICAL_PARTNER
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.evaluation.examples import Spelling, Split

Change = Literal["none", "removed", "exchanged"]

_STYLE = "dense"
# Apart from the streams of the benchmark.
_STREAMS: dict[Split, int] = {"development": 6, "test": 7}


@dataclass(frozen=True, eq=False)
class TemptedCaption:
    r"""
    An image, a question, and an answer that may name what the image does not show.

    Args:
        number (int): which scene.
        change (str): ``"none"``; ``"removed"``; or ``"exchanged"`` for another object, so that
            something is where the caption has the usual companion.
        scene (Scene): what the image shows.
        caption (Caption or Phrasing): the words of the answer.
        labels (dict[int, bool]): for the places of words whose truth is known, shapes and colours
            of objects, whether the image shows what they name.
        prompt (str): the question. Default: that for a dense caption
    """

    number: int
    change: Change
    scene: Scene
    caption: Caption | Phrasing
    labels: dict[int, bool]
    prompt: str = DEMO_PROMPTS[_STYLE]

    @property
    def image(self) -> Image.Image:
        """The image, 8 bits a channel."""
        return Image.fromarray(render(self.scene).image)

    @property
    def answer(self) -> str:
        """The caption's text."""
        return str(self.caption)


def tempted_captions(
    numbers: Iterable[int],
    split: Split = "development",
    seed: int = 0,
    spelling: Spelling = "words",
) -> list[TemptedCaption]:
    r"""
    Captions of scenes before and after their second object is removed or exchanged.

    The caption names the object twice: after words that predict it, as scenes have a full language
    prior, and once more after the caption has already named it, which is a wrong first sentence
    where the object is gone.

    Args:
        numbers (Iterable[int]): which scenes, from 0 upwards.
        split (str): ``"development"`` to fit a calibration, ``"test"`` to report. Default:
            "development"
        seed (int): which scenes. Default: 0
        spelling (str): of the captions, see
            :func:`~captum_mllm.evaluation.examples.sample_examples`. Default: "words"

    Returns:
        list[TemptedCaption]: three for each scene whose second object has a shape of its own.

    Raises:
        ValueError: for another split or spelling.

    Examples::

        >>> found = tempted_captions(range(3))
        >>> [each.change for each in found[:3]]
        ['none', 'removed', 'exchanged']
    """
    check_choice("split", split, get_args(Split))
    check_choice("spelling", spelling, get_args(Spelling))
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
            written = natural(spoken) if spelling == "natural" else spoken
            found.append(TemptedCaption(number, change, shown, written, labels))
    return found


def leading_questions(captions: Iterable[TemptedCaption]) -> list[TemptedCaption]:
    r"""
    Questions for a shape by its name, answered by "Yes, there is a star.", in ordinary spelling.

    Once the answer says yes, the question tells the shape. Each image is asked for two shapes that
    it shows, as far as it has two, and for two that it does not: the one that was taken away, and
    then usual companions of those that are there.

    Args:
        captions (Iterable[TemptedCaption]): those whose images are asked about.

    Returns:
        list[TemptedCaption]: the questions of one image after those of another.

    Examples::

        >>> found = leading_questions(tempted_captions([0])[1:2])
        >>> [(each.prompt, each.labels[5]) for each in found][-1]
        ('Is there a circle?', False)
    """
    found = []
    for each in captions:
        there = list(dict.fromkeys(thing.shape for thing in each.scene.objects))
        named = [word for word in each.caption.words if word in SHAPES]
        companions = [TYPICAL_PARTNER[shape] for shape in there]
        others = dict.fromkeys(s for s in (*named, *companions, *SHAPES) if s not in there)
        for shape in (*there[:2], *list(others)[:2]):
            things = tuple(
                index for index, thing in enumerate(each.scene.objects) if thing.shape == shape
            )
            words = ("Yes", ",", "there", "is", article(shape), shape, ".")
            answer = Phrasing(words, ((), (), (), (), things, things, ()))
            question = f"Is there {article(shape)} {shape}?"
            labels = {words.index(shape): shape in there}
            found.append(replace(each, caption=answer, labels=labels, prompt=question))
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
