"""`ScenePool`, the images of a training run, and `Course`, what all its stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from captum_mllm.datasets.captions import CAPTION_STYLES, Caption, caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene
from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.optimization import Checkpoint


class Example(NamedTuple):
    r"""A scene, its image, and its caption in each style.

    Args:
        scene (Scene): The scene.
        image (numpy.ndarray): Its image, (S, S, 3), uint8.
        captions (dict[str, Caption]): Its captions by style.
    """

    scene: Scene
    image: npt.NDArray[np.uint8]
    captions: dict[str, Caption]


class ScenePool:
    r"""Numbered scenes, and a window onto them that moves on with every step.

    A scene depends on its number alone and is rendered when first drawn, so that resumed training
    sees the images that uninterrupted training would have seen.

    Args:
        seed (int): The seed of the training run.
        size (int): Width and height of the images, in pixels.
        rate (int): How many scenes leave and enter the window at each step.
        window (int): How many scenes may be drawn at a step. Default: 4096
        **options (Any): Passed on to :func:`~captum_mllm.datasets.sampling.sample_scene`.
    """

    def __init__(self, seed: int, size: int, rate: int, window: int = 4096, **options: Any) -> None:
        self.seed = seed
        self.size = size
        self.rate = rate
        self.window = window
        self.options = options
        self._rendered: dict[int, Example] = {}
        self._oldest = 0

    def draw(self, generator: np.random.Generator, step: int, count: int) -> list[Example]:
        r"""Draw different scenes from the window of a step. Steps must not go backwards.

        Args:
            generator (numpy.random.Generator): Decides which.
            step (int): The number of the step.
            count (int): How many, at most the size of the window.

        Returns:
            list[Example]: The scenes, rendered and captioned.
        """
        oldest = step * self.rate
        for number in range(self._oldest, oldest):
            self._rendered.pop(number, None)
        self._oldest = oldest
        numbers = oldest + generator.choice(self.window, count, replace=False)
        return [self._get(int(number)) for number in numbers]

    def _get(self, number: int) -> Example:
        if number not in self._rendered:
            generator = np.random.default_rng([2, self.seed, self.size, number])
            scene = sample_scene(generator, **self.options)
            captions = {style: caption(scene, style) for style in CAPTION_STYLES}
            self._rendered[number] = Example(scene, render(scene, self.size).image, captions)
        return self._rendered[number]


def images_of(examples: list[Example]) -> npt.NDArray[np.uint8]:
    r"""The images of some examples, stacked.

    Args:
        examples (list[Example]): B examples of one size.

    Returns:
        numpy.ndarray: (B, S, S, 3), uint8.
    """
    return np.stack([example.image for example in examples])


@dataclass(frozen=True)
class Course:
    r"""
    What all stages of a training run share.

    Args:
        architecture (Architecture): The model's architecture.
        seed (int): Seeds weights, scenes and their order. Default: 0
        prior (float): Strength of the language prior of the scenes whose captions the model
            learns from, in 0 to 1. Default: 0.3
        contact (float): Share of the scenes, of two or three objects, in which two objects touch,
            in 0 to 1. Default: 0.25
        answers_only (bool): Whether the loss of captions is that of the answers alone, without
            losses on what image tokens say. Default: False
    """

    architecture: Architecture
    seed: int = 0
    prior: float = 0.3
    contact: float = 0.25
    answers_only: bool = False

    def captioned(self, stream: int, large: bool = True, objects: int | None = None) -> ScenePool:
        r"""
        Scenes for the stages that train on captions of images.

        Args:
            stream (int): Stages with different streams see different scenes.
            large (bool): Whether images have twice the size that the model sees at scale 1.
                Default: True
            objects (int, optional): How many each scene has. Default: None, one to three.

        Returns:
            ScenePool: The scenes; fewer new ones a step where images are large.
        """
        side = self.architecture.image_size
        return ScenePool(
            self.seed + stream,
            2 * side if large else side,
            4 if large else 8,
            objects=objects,
            prior=self.prior,
            contact=self.contact,
        )


#: A stage changes a model, in place, in a number of steps, and resumes from a checkpoint.
Stage = Callable[[Any, Course, int, Checkpoint], None]
