r"""A stream of rendered scenes that is reproducible and cheap: each scene serves several steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from captum_mllm.datasets.captions import CAPTION_STYLES, Caption, caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene


class Example(NamedTuple):
    r"""A scene, its picture, and its caption in each style.

    Args:
        scene (Scene): The scene.
        image (numpy.ndarray): Its picture, (S, S, 3), uint8.
        captions (dict[str, Caption]): Its captions by style.
    """

    scene: Scene
    image: npt.NDArray[np.uint8]
    captions: dict[str, Caption]


class ScenePool:
    r"""Numbered scenes, and a window onto them that moves on with every step.

    A scene depends on its number alone and is rendered when first drawn, so that resumed training
    sees the pictures that uninterrupted training would have seen.

    Args:
        seed (int): The seed of the training run.
        size (int): Width and height of the pictures, in pixels.
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


def pictures_of(examples: list[Example]) -> npt.NDArray[np.uint8]:
    r"""The pictures of some examples, stacked.

    Args:
        examples (list[Example]): B examples of one size.

    Returns:
        numpy.ndarray: (B, S, S, 3), uint8.
    """
    return np.stack([example.image for example in examples])
