r"""A stream of rendered scenes that is reproducible and cheap: each scene serves several steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.scenes import Scene, sample_scene


class ScenePool:
    r"""Numbered scenes, and a window onto them that moves on with every step.

    A scene depends on its number alone and is rendered when first drawn, so that resumed training
    sees the pictures that uninterrupted training would have seen.

    Args:
        seed (int): The seed of the training run.
        size (int): Width and height of the pictures, in pixels.
        rate (int): How many scenes leave and enter the window at each step.
        window (int): How many scenes may be drawn at a step.
        **options (Any): Passed on to :func:`~captum_mllm.datasets.scenes.sample_scene`.
    """

    def __init__(self, seed: int, size: int, rate: int, window: int, **options: Any) -> None:
        self.seed = seed
        self.size = size
        self.rate = rate
        self.window = window
        self.options = options
        self._rendered: dict[int, tuple[Scene, npt.NDArray[np.uint8]]] = {}
        self._oldest = 0

    def draw(
        self, generator: np.random.Generator, step: int, count: int
    ) -> tuple[list[Scene], npt.NDArray[np.uint8]]:
        r"""Draw different scenes from the window of a step. Steps must not go backwards.

        Args:
            generator (numpy.random.Generator): Decides which.
            step (int): The number of the step.
            count (int): How many, at most the size of the window.

        Returns:
            tuple[list[Scene], numpy.ndarray]: The scenes and their pictures, (count, size, size,
            3), uint8.
        """
        oldest = step * self.rate
        for number in range(self._oldest, oldest):
            self._rendered.pop(number, None)
        self._oldest = oldest
        numbers = oldest + generator.choice(self.window, count, replace=False)
        drawn = [self._get(int(number)) for number in numbers]
        return [scene for scene, _ in drawn], np.stack([image for _, image in drawn])

    def _get(self, number: int) -> tuple[Scene, npt.NDArray[np.uint8]]:
        if number not in self._rendered:
            generator = np.random.default_rng([2, self.seed, self.size, number])
            scene = sample_scene(generator, **self.options)
            self._rendered[number] = scene, render(scene, self.size).image
        return self._rendered[number]
