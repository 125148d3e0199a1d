r"""Random scenes, under a language prior of any strength."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from captum_mllm.datasets.relations import BIG, BIGGER, LEVEL, relation
from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES

#: The colour that a language prior ties to each shape.
TYPICAL_COLOR: dict[str, str] = dict(
    zip(SHAPES, ("red", "blue", "green", "yellow", "orange", "cyan", "purple", "pink"))
)

#: The shape that a language prior puts next to each shape, to its right.
TYPICAL_PARTNER: dict[str, str] = dict(zip(SHAPES, SHAPES[1:] + SHAPES[:1]))

_COLUMN_GAP = 0.11
_INNER_COLUMN_GAP = 0.06
_OBJECT_GAP = 0.035
_BORDER = 0.02
_ATTEMPTS = 4000
_SEED_LIMIT = 2**32

# What is close to the limit between two words would be told apart by luck.
_LEVEL_MARGIN = 0.035
_BIG_MARGIN = 0.01
_BIGGER_MARGIN = 0.06

# Radii of the larger object of two that touch, of the smaller one, and of a third.
_OUTER, _INNER, _THIRD = (0.25, 0.3), (0.11, 0.13), (0.12, 0.15)
_ENCLOSING = ("circle", "square", "heart")


@dataclass(frozen=True)
class _Place:
    x: float
    y: float
    radius: float

    def free_of(self, other: _Place, overlap: float = 1.0) -> bool:
        """Whether objects here and there are apart, also as columns."""
        distance = math.hypot(self.x - other.x, self.y - other.y)
        return (
            abs(self.x - other.x) >= _COLUMN_GAP
            and distance >= (self.radius + other.radius + _OBJECT_GAP) * overlap
        )


def _place(generator: np.random.Generator, radii: tuple[float, float]) -> _Place:
    """A place where an object of such a radius lies within the image."""
    radius = float(generator.uniform(*radii))
    edge = radius + _BORDER
    x, y = generator.uniform(edge, 1.0 - edge, 2).tolist()
    return _Place(x, y, radius)


def _apart(generator: np.random.Generator, count: int, occlusion: float) -> list[_Place] | None:
    """Places from left to right that overlap as allowed; None if all attempts fail."""
    radii = (0.12, 0.22) if count < 4 else (0.1, 0.15)
    places: list[_Place] = []
    for _ in range(20 * count):
        place = _place(generator, radii)
        if all(place.free_of(other, 1.0 - occlusion) for other in places):
            places.append(place)
        if len(places) == count:
            return sorted(places, key=lambda place: place.x)
    return None


def _touching(
    generator: np.random.Generator, count: int, inside: bool
) -> tuple[list[_Place], int, int] | None:
    """Places from left to right and which of them are the upper and the lower of a pair that
    touches; None if these attempts failed."""
    lower = _place(generator, _OUTER)
    radius = float(generator.uniform(*_INNER))
    angle = generator.uniform(0.0, 2.0 * math.pi)
    reach = lower.radius * generator.uniform(*((0.2, 0.6) if inside else (0.7, 1.1)))
    upper = _Place(
        float(lower.x + reach * math.cos(angle)), float(lower.y + reach * math.sin(angle)), radius
    )
    edge = radius + _BORDER
    if not (edge <= min(upper.x, upper.y) and max(upper.x, upper.y) <= 1.0 - edge):
        return None
    if abs(upper.x - lower.x) < _INNER_COLUMN_GAP:
        return None
    places = [upper, lower]
    for _ in range(20 * count):
        if len(places) == count:
            break
        place = _place(generator, _THIRD)
        if all(place.free_of(other) for other in places):
            places.append(place)
    if len(places) < count:
        return None
    places.sort(key=lambda place: place.x)
    return places, places.index(upper), places.index(lower)


def _clear(places: list[_Place], pair: tuple[int, int] | None) -> bool:
    """Whether no word that a caption needs would be a matter of luck."""
    if any(abs(place.radius - BIG) < _BIG_MARGIN for place in places):
        return False
    if len(places) < 2:
        return True
    first, second, last = places[0], places[1], places[-1]
    ratio = max(first.radius, last.radius) / min(first.radius, last.radius)
    if abs(ratio - BIGGER) < _BIGGER_MARGIN:
        return False
    touching = pair is not None and set(pair) == {0, 1}
    return touching or abs(abs(first.y - second.y) - LEVEL) >= _LEVEL_MARGIN


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


def _object(
    generator: np.random.Generator, place: _Place, look: tuple[str, str], stripes: float
) -> SceneObject:
    shade = generator.uniform(-18.0, 18.0, 3).tolist()
    return SceneObject(
        shape=look[0],
        color=look[1],
        x=place.x,
        y=place.y,
        radius=place.radius,
        striped=bool(generator.random() < stripes),
        rotation=float(generator.uniform(-0.2, 0.2)),
        shade=(shade[0], shade[1], shade[2]),
        phase=float(generator.uniform(0.0, 2.0 * math.pi)),
    )


def sample_scene(
    generator: np.random.Generator | int,
    objects: int | None = None,
    prior: float = 0.0,
    similarity: float = 0.0,
    occlusion: float = 0.0,
    contact: float = 0.0,
    stripes: float = 0.3,
) -> Scene:
    r"""Draw a random scene.

    Sizes and places keep off the limits between the words for them, such as "above" and "beside".

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
        contact (float): Probability, in 0 to 1, that a scene of two or three objects has a small
            one inside a large circle, square or heart, or on top of the edge of a large object.
            Default: 0.0
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
        ("contact", contact, 1.0),
        ("stripes", stripes, 1.0),
    ):
        if not 0.0 <= value <= limit:
            raise ValueError(f"{name} must lie in 0 to {limit:g}, but is {value}.")
    generator = np.random.default_rng(generator)
    count = int(generator.choice(3, p=(0.15, 0.4, 0.45))) + 1 if objects is None else objects
    touches = 2 <= count <= 3 and generator.random() < contact
    kind = ("inside", "on top of")[generator.integers(2)] if touches else None
    for _ in range(_ATTEMPTS):
        scene = _attempt(generator, count, kind, prior, similarity, occlusion, stripes)
        if scene is not None:
            return scene
    raise ValueError(f"No room was found for {count} objects; ask for fewer.")


def _attempt(
    generator: np.random.Generator,
    count: int,
    kind: str | None,
    prior: float,
    similarity: float,
    occlusion: float,
    stripes: float,
) -> Scene | None:
    """A scene with a pair in contact of this kind, if any; None if chance did not grant one."""
    pair = None
    if kind is None:
        places = _apart(generator, count, occlusion)
    else:
        found = _touching(generator, count, inside=kind == "inside")
        places, pair = (None, None) if found is None else (found[0], found[1:])
    if places is None or not _clear(places, pair):
        return None
    looks = _looks(generator, count, prior, similarity)
    if pair is not None and kind == "inside" and looks[pair[1]][0] not in _ENCLOSING:
        return None
    things = [_object(generator, *placed, stripes) for placed in zip(places, looks)]
    order = generator.permutation(count).tolist()
    if pair is not None and order.index(pair[0]) < order.index(pair[1]):
        upper, lower = order.index(pair[0]), order.index(pair[1])
        order[upper], order[lower] = order[lower], order[upper]
    scene = Scene(
        tuple(things[index] for index in order),
        BACKGROUNDS[generator.integers(len(BACKGROUNDS))],
        int(generator.integers(_SEED_LIMIT)),
    )
    if pair is not None and relation(scene, order.index(pair[0]), order.index(pair[1])) != kind:
        return None
    return scene
