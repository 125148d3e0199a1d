r"""What all stages of a training run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.optimization import Checkpoint
from captum_mllm.demo.training.pool import ScenePool


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
    """

    architecture: Architecture
    seed: int = 0
    prior: float = 0.3
    contact: float = 0.25

    def captioned(self, stream: int, large: bool = True, objects: int | None = None) -> ScenePool:
        r"""
        Scenes for the stages that train on captions of pictures.

        Args:
            stream (int): Stages with different streams see different scenes.
            large (bool): Whether pictures have twice the size that the model sees at scale 1.
                Default: True
            objects (int, optional): How many each scene has. Default: None, one to three.

        Returns:
            ScenePool: The scenes; fewer new ones a step where pictures are large.
        """
        side = self.architecture.picture_size
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
