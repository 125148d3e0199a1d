r"""How two objects of a scene lie to each other, and how large they are."""

from __future__ import annotations

import math

import numpy as np

from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.datasets.shapes import EXTENT

#: Two objects are above or below each other, and not beside, from this height difference on.
LEVEL = 0.125

#: An object is big from this radius on.
BIG = 0.165

#: An object is bigger than another, and not as big, from this ratio of their radii on.
BIGGER = 1.22

_INSIDE = 0.98
_TOUCHING = 0.1
_SAMPLES = 24


def covered_share(upper: SceneObject, lower: SceneObject) -> float:
    r"""The share of an object's area that lies over another object.

    Args:
        upper (SceneObject): The object.
        lower (SceneObject): The other one.

    Returns:
        float: The share, in 0 to 1, on a grid of 24 x 24 points.

    Examples::

        >>> star = SceneObject("star", "red", x=0.5, y=0.5, radius=0.1)
        >>> covered_share(star, SceneObject("circle", "blue", x=0.5, y=0.5, radius=0.3))
        1.0
    """
    apart = math.hypot(upper.x - lower.x, upper.y - lower.y)
    if apart > EXTENT * (upper.radius + lower.radius):
        return 0.0
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * 2 - 1
    reach = EXTENT * upper.radius
    x, y = np.meshgrid(upper.x + steps * reach, upper.y + steps * reach)
    area = upper.contains(x, y)
    return float(lower.contains(x[area], y[area]).mean())


def relation(scene: Scene, first: int, second: int) -> str:
    r"""How one object of a scene lies to another.

    An object that is painted over another is inside it or on top of it; objects that do not touch
    are above, below or beside each other.

    Args:
        scene (Scene): The scene.
        first (int): Index of the object that is spoken of.
        second (int): Index of the object that it is set in relation to.

    Returns:
        str: ``"inside"``, ``"around"``, ``"on top of"``, ``"under"``, ``"above"``, ``"below"`` or
        ``"beside"``.

    Examples::

        >>> star = SceneObject("star", "red", x=0.5, y=0.2, radius=0.1)
        >>> ring = SceneObject("ring", "blue", x=0.6, y=0.7, radius=0.1)
        >>> relation(Scene((star, ring)), 0, 1)
        'above'
    """
    upper, lower = max(first, second), min(first, second)
    share = covered_share(scene.objects[upper], scene.objects[lower])
    if share >= _INSIDE:
        return "inside" if first == upper else "around"
    if share >= _TOUCHING:
        return "on top of" if first == upper else "under"
    drop = scene.objects[second].y - scene.objects[first].y
    if abs(drop) < LEVEL:
        return "beside"
    return "above" if drop > 0 else "below"


def size_word(thing: SceneObject) -> str:
    r"""Whether an object is big or small.

    Args:
        thing (SceneObject): The object.

    Returns:
        str: ``"big"`` or ``"small"``.
    """
    return "big" if thing.radius >= BIG else "small"


def comparison(first: SceneObject, second: SceneObject) -> str:
    r"""How an object's size compares with another's.

    Args:
        first (SceneObject): The object that is spoken of.
        second (SceneObject): The object that it is compared with.

    Returns:
        str: ``"bigger than"``, ``"smaller than"`` or ``"as big as"``.
    """
    ratio = first.radius / second.radius
    if max(ratio, 1 / ratio) < BIGGER:
        return "as big as"
    return "bigger than" if ratio > 1 else "smaller than"
