r"""Scenes: a few coloured shapes on a textured background, described rather than drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from captum_mllm.datasets.shapes import SHAPES

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

#: The kinds of background.
BACKGROUNDS: tuple[str, ...] = ("dark", "light")

#: The colour that a language prior ties to each shape.
TYPICAL_COLOR: dict[str, str] = dict(
    zip(SHAPES, ("red", "blue", "green", "yellow", "orange", "cyan", "purple", "pink"))
)

#: The shape that a language prior puts next to each shape, to its right.
TYPICAL_PARTNER: dict[str, str] = dict(zip(SHAPES, SHAPES[1:] + SHAPES[:1]))

#: Two objects are above or below each other, and not beside, from this height difference on.
LEVEL = 0.125

_LEVEL_MARGIN = 0.035
_COLUMN_GAP = 0.11
_OBJECT_GAP = 0.035
_BORDER = 0.02
_ATTEMPTS = 2000
_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class SceneObject:
    r"""One shape of a scene. Lengths are fractions of the picture's side; y points down.

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


@dataclass(frozen=True)
class Scene:
    r"""What a picture shows. A picture is a pure function of its scene and its size.

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


def _places(
    generator: np.random.Generator, count: int, occlusion: float
) -> list[tuple[float, float, float]]:
    """Centres and radii from left to right; the first two lie clearly to each other."""
    largest = 0.19 if count < 3 else 0.16
    overlap = 1.0 - occlusion
    for _ in range(_ATTEMPTS):
        places: list[tuple[float, float, float]] = []
        for _ in range(20 * count):
            radius = generator.uniform(0.1, largest)
            edge = radius + _BORDER
            x, y = generator.uniform(edge, 1.0 - edge, 2)
            free = all(
                abs(x - other_x) >= _COLUMN_GAP
                and math.hypot(x - other_x, y - other_y)
                >= (radius + other_radius + _OBJECT_GAP) * overlap
                for other_x, other_y, other_radius in places
            )
            if free:
                places.append((float(x), float(y), float(radius)))
            if len(places) == count:
                break
        if len(places) < count:
            continue
        places.sort()
        if count > 1 and abs(abs(places[0][1] - places[1][1]) - LEVEL) < _LEVEL_MARGIN:
            continue
        return places
    raise ValueError(f"No room was found for {count} objects; ask for fewer.")


def _looks(
    generator: np.random.Generator, count: int, prior: float, similarity: float
) -> list[tuple[str, str]]:
    """Shapes and colours from left to right; no two objects have both in common."""
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        shape = SHAPES[generator.integers(len(SHAPES))]
        if looks and generator.random() < prior:
            shape = TYPICAL_PARTNER[looks[-1][0]]
        color = list(COLORS)[generator.integers(len(COLORS))]
        if generator.random() < prior:
            color = TYPICAL_COLOR[shape]
        if looks and generator.random() < similarity:
            other_shape, other_color = looks[generator.integers(len(looks))]
            if generator.random() < 0.5:
                shape = other_shape
            else:
                color = other_color
        if (shape, color) not in looks:
            looks.append((shape, color))
    return looks


def sample_scene(
    generator: np.random.Generator | int,
    objects: int | None = None,
    prior: float = 0.0,
    similarity: float = 0.0,
    occlusion: float = 0.0,
    stripes: float = 0.3,
) -> Scene:
    r"""Draw a random scene.

    Args:
        generator (numpy.random.Generator or int): The source of randomness, or a seed for it.
        objects (int, optional): The number of objects, 1 to 5. If None, 1, 2 or 3 with
            probabilities 0.15, 0.40 and 0.45. Default: None
        prior (float): Strength of the language prior, in 0 to 1. With this probability, on top of
            an independent draw, an object has the colour :data:`TYPICAL_COLOR` of its shape, and
            the shape :data:`TYPICAL_PARTNER` of its left neighbour's. At 0 the words of a caption
            say nothing about each other; the higher, the more earlier words tempt a model to
            guess instead of to look. Default: 0.0
        similarity (float): Probability, in 0 to 1, that an object takes over the shape or the
            colour (never both) of one to its left. Default: 0.0
        occlusion (float): How far objects may overlap, in 0 (not at all) to 0.5, as a fraction of
            the distance at which they touch. Default: 0.0
        stripes (float): Probability, in 0 to 1, that an object is striped. Default: 0.3

    Returns:
        Scene: The scene. The same seed and arguments give the same scene.

    Raises:
        ValueError: If an argument is out of its range.

    Examples::

        >>> scene = sample_scene(7, objects=2)
        >>> len(scene.objects)
        2
        >>> scene == sample_scene(7, objects=2)
        True
    """
    if objects is not None and not 1 <= objects <= 5:
        raise ValueError(f"The number of objects must be 1 to 5, but is {objects}.")
    for name, value, limit in (
        ("prior", prior, 1.0),
        ("similarity", similarity, 1.0),
        ("occlusion", occlusion, 0.5),
        ("stripes", stripes, 1.0),
    ):
        if not 0.0 <= value <= limit:
            raise ValueError(f"{name} must lie in 0 to {limit:g}, but is {value}.")
    generator = np.random.default_rng(generator)
    count = int(generator.choice(3, p=(0.15, 0.4, 0.45))) + 1 if objects is None else objects
    places = _places(generator, count, occlusion)
    looks = _looks(generator, count, prior, similarity)
    things = [
        SceneObject(
            shape=shape,
            color=color,
            x=x,
            y=y,
            radius=radius,
            striped=bool(generator.random() < stripes),
            rotation=float(generator.uniform(-0.2, 0.2)),
            shade=tuple(generator.uniform(-18.0, 18.0, 3).tolist()),
            phase=float(generator.uniform(0.0, 2.0 * math.pi)),
        )
        for (x, y, radius), (shape, color) in zip(places, looks)
    ]
    order = generator.permutation(count)
    background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
    seed = int(generator.integers(_SEED_LIMIT))
    return Scene(tuple(things[index] for index in order), background, seed)


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

        >>> scene = sample_scene(0, objects=3)
        >>> len(counterfactual(scene, 1).objects)
        2
    """
    count = len(scene.objects)
    if not -count <= index < count:
        raise IndexError(f"The scene has {count} objects, so there is no object {index}.")
    index %= count
    exchanged = () if replacement is None else (replacement,)
    return replace(scene, objects=scene.objects[:index] + exchanged + scene.objects[index + 1 :])
