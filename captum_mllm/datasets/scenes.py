r"""Scenes: a few coloured shapes on a textured background, described rather than drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from captum_mllm.datasets.shapes import SHAPES, FloatArray, signed_distance

#: The colours of objects, as (red, green, blue) in 0 to 255.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 145, 30),
    "yellow": (240, 225, 50),
    "green": (45, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 210),
    "purple": (140, 60, 175),
    "pink": (245, 150, 190),
}

#: Stands for the background where the index of an object is asked for.
BACKGROUND = -1

#: The kinds of background.
BACKGROUNDS: tuple[str, ...] = ("dark", "light")


@dataclass(frozen=True)
class SceneObject:
    r"""One shape of a scene. Lengths are fractions of the image's side; y points down.

    Args:
        shape (str): One of :data:`~captum_mllm.datasets.shapes.SHAPES`.
        color (str): One of :data:`COLORS`.
        x (float): The centre's distance from the left edge, in 0 to 1.
        y (float): The centre's distance from the upper edge, in 0 to 1.
        radius (float): The size; a shape reaches about one radius from its centre.
        striped (bool): Whether dark diagonal stripes cover the shape. Default: False
        rotation (float): Clockwise turn, in radians. Default: 0.0
        shade (tuple[float, float, float]): Added to the colour's red, green and blue (0 to 255).
            Default: no change
        phase (float): Where the stripes begin, in radians. Default: 0.0
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float
    striped: bool = False
    rotation: float = 0.0
    shade: tuple[float, float, float] = (0.0, 0.0, 0.0)
    phase: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"No shape is called {self.shape!r}; there are {', '.join(SHAPES)}.")
        if self.color not in COLORS:
            raise ValueError(f"No colour is called {self.color!r}; there are {', '.join(COLORS)}.")
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"The radius must be positive and finite, but is {self.radius}.")

    def own_frame(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        r"""Points of the image as seen from the object: upright, around its centre, in radii.

        Args:
            x (numpy.ndarray): Distances from the left edge, as fractions of the image's side.
            y (numpy.ndarray): Distances from the upper edge.

        Returns:
            tuple[numpy.ndarray, numpy.ndarray]: The coordinates, in radii.
        """
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        right, down = x - self.x, y - self.y
        return (
            (cosine * right + sine * down) / self.radius,
            (cosine * down - sine * right) / self.radius,
        )

    def contains(self, x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
        r"""Whether points of the image lie in the shape.

        Args:
            x (numpy.ndarray): Distances from the left edge, as fractions of the image's side.
            y (numpy.ndarray): Distances from the upper edge.

        Returns:
            numpy.ndarray: bool, of the shape of ``x`` and ``y`` broadcast together.
        """
        inside: npt.NDArray[np.bool_] = signed_distance(self.shape, *self.own_frame(x, y)) < 0
        return inside


@dataclass(frozen=True)
class Scene:
    r"""What an image shows. An image is a pure function of its scene and its size.

    Args:
        objects (tuple[SceneObject, ...]): The objects in the order of painting: a later one covers
            an earlier one where they overlap.
        background (str): One of :data:`BACKGROUNDS`. Default: ``"light"``
        seed (int): Seeds the background's tint, texture and noise. Default: 0
    """

    objects: tuple[SceneObject, ...]
    background: str = "light"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(
                f"No background is called {self.background!r}; there are {', '.join(BACKGROUNDS)}."
            )

    def reading_order(self) -> tuple[int, ...]:
        r"""Indices of the objects from left to right.

        Returns:
            tuple[int, ...]: A permutation of ``range(len(objects))``.
        """
        return tuple(sorted(range(len(self.objects)), key=lambda index: self.objects[index].x))


def counterfactual(scene: Scene, index: int, replacement: SceneObject | None = None) -> Scene:
    r"""The same scene without one of its objects, or with another in its place.

    Background, noise and the other objects stay equal to the pixel, so that whatever changes in a
    model's answer is due to the object.

    Args:
        scene (Scene): The scene.
        index (int): Which of ``scene.objects`` to take away; negative indices count from the end.
        replacement (SceneObject, optional): What to put in its place, at its rank in the order of
            painting; usually ``dataclasses.replace(scene.objects[index], color="blue")`` or the
            like. If None, nothing. Default: None

    Returns:
        Scene: The changed scene.

    Raises:
        IndexError: If the scene has no such object.

    Examples::

        >>> star = SceneObject("star", "pink", x=0.3, y=0.3, radius=0.1)
        >>> ring = SceneObject("ring", "blue", x=0.7, y=0.7, radius=0.1)
        >>> counterfactual(Scene((star, ring)), 0).objects == (ring,)
        True
    """
    count = len(scene.objects)
    if not -count <= index < count:
        raise IndexError(f"The scene has {count} objects, so there is no object {index}.")
    index %= count
    exchanged = () if replacement is None else (replacement,)
    return replace(scene, objects=scene.objects[:index] + exchanged + scene.objects[index + 1 :])
