r"""Texts in which one earlier word decides a later one: which word matters is known.

Exports :class:`Reference`, :data:`REFERENCE_KINDS` and :func:`sample_references`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES

ReferenceKind = Literal["color", "repeat", "other", "same"]

_SEED_LIMIT = 2**32


@dataclass(frozen=True)
class Reference:
    r"""An image and a text whose last word is decided by an earlier one.

    The image shows all that both texts of a pair speak of, and the texts differ in the deciding
    word and the decided one alone. So the image and the other words leave the last word open.

    Args:
        kind (str): One of :data:`REFERENCE_KINDS`.
        scene (Scene): What the image shows.
        words (tuple[str, ...]): The text up to the word that is decided, which is the last.
        causes (tuple[int, ...]): Places in ``words`` of the words that decide it.
        alternative (tuple[str, ...]): The other text of the pair, as long as ``words``.
    """

    kind: ReferenceKind
    scene: Scene
    words: tuple[str, ...]
    causes: tuple[int, ...]
    alternative: tuple[str, ...]

    @property
    def place(self) -> int:
        """Place of the word that is decided."""
        return len(self.words) - 1

    @property
    def distance(self) -> int:
        """Distance in words to the nearest cause before it; 1 for the word directly before."""
        return self.place - max(self.causes)

    def swapped(self) -> Reference:
        """The same image with the other text of the pair."""
        return Reference(self.kind, self.scene, self.alternative, self.causes, self.words)

    def __str__(self) -> str:
        return " ".join(self.words)


def sample_references(count: int, kind: ReferenceKind, seed: int = 0) -> list[Reference]:
    r"""Draw images and texts in which one earlier word decides the last one.

    Args:
        count (int): Number of references; each two neighbours are a pair with one image.
        kind (str): One of :data:`REFERENCE_KINDS`.

            - ``"color"``: "there is a red circle", where the image has a blue star as well: the
              colour tells which of the two is meant. It comes directly before the decided word.
            - ``"repeat"``: "there is a red circle . the circle", where the image has a red star
              as well: the second sentence comes back to what the first one named.
            - ``"other"``: "the red circle is left of the blue star . the circle is beside the
              star": what is not the subject of the second sentence.
            - ``"same"``: "the red circle has the same shape as the blue circle", where the image
              has stars of both colours as well. Not for models that only know the words of
              :func:`~captum_mllm.datasets.caption`.
        seed (int): Seed of the draws. Default: 0

    Returns:
        list[Reference]: Of length ``count``.

    Raises:
        ValueError: If there is no such kind.

    Examples::

        >>> first, second = sample_references(2, "other")
        >>> first.scene == second.scene, first.words == second.alternative
        (True, True)
        >>> cause = first.words[first.causes[0]]
        >>> cause == second.words[-1] != first.words[-1]
        True
    """
    if kind not in _KINDS:
        raise ValueError(f"No kind is called {kind!r}; there are {', '.join(REFERENCE_KINDS)}.")
    generator = np.random.default_rng([seed, REFERENCE_KINDS.index(kind)])
    found: list[Reference] = []
    while len(found) < count:
        reference = _KINDS[kind](generator, kind)
        found += [reference, reference.swapped()]
    return found[:count]


def _color(generator: np.random.Generator, kind: ReferenceKind) -> Reference:
    colors, shapes = _draw(generator, COLORS), _draw(generator, SHAPES)
    texts = [f"there is a {color} {shape}" for color, shape in zip(colors, shapes)]
    scene = _row(generator, list(zip(colors, shapes)))
    return _reference(kind, scene, texts, 3)


def _repeat(generator: np.random.Generator, kind: ReferenceKind) -> Reference:
    (color, _), shapes = _draw(generator, COLORS), _draw(generator, SHAPES)
    texts = [f"there is a {color} {shape} . the {shape}" for shape in shapes]
    return _reference(kind, _row(generator, [(color, shape) for shape in shapes]), texts, 4)


def _other(generator: np.random.Generator, kind: ReferenceKind) -> Reference:
    colors, shapes = _draw(generator, COLORS), _draw(generator, SHAPES)
    left, right = (f"the {color} {shape}" for color, shape in zip(colors, shapes))
    start = f"{left} is left of {right} ."
    texts = [
        f"{start} the {subject} is beside the {other}" for subject, other in (shapes, shapes[::-1])
    ]
    scene = _row(generator, list(zip(colors, shapes)))
    return _reference(kind, scene, texts, len(start.split()) + 1)


def _same(generator: np.random.Generator, kind: ReferenceKind) -> Reference:
    colors, shapes = _draw(generator, COLORS), _draw(generator, SHAPES)
    texts = [
        f"the {colors[0]} {shape} has the same shape as the {colors[1]} {shape}" for shape in shapes
    ]
    looks = [(color, shape) for color in colors for shape in shapes]
    generator.shuffle(looks)
    rows = [_objects(generator, looks[start : start + 2], y) for start, y in ((0, 0.27), (2, 0.73))]
    return _reference(kind, _scene(generator, rows[0] + rows[1]), texts, 2)


_KINDS: dict[str, Callable[[np.random.Generator, ReferenceKind], Reference]] = {
    "color": _color,
    "repeat": _repeat,
    "other": _other,
    "same": _same,
}

#: The kinds of references.
REFERENCE_KINDS: tuple[str, ...] = tuple(_KINDS)


def _reference(kind: ReferenceKind, scene: Scene, texts: list[str], cause: int) -> Reference:
    words, alternative = (tuple(text.split()) for text in texts)
    return Reference(kind, scene, words, (cause,), alternative)


def _draw(generator: np.random.Generator, names: Iterable[str]) -> list[str]:
    """Two different names."""
    return [str(name) for name in generator.choice(list(names), 2, replace=False)]


def _row(generator: np.random.Generator, looks: list[tuple[str, str]]) -> Scene:
    """Two objects beside each other, in the order of their looks."""
    return _scene(generator, _objects(generator, looks, 0.5))


def _objects(
    generator: np.random.Generator, looks: list[tuple[str, str]], y: float
) -> tuple[SceneObject, ...]:
    # Height differences stay below that of "above" and "below".
    return tuple(
        SceneObject(
            shape,
            color,
            x=float(x + generator.uniform(-0.04, 0.04)),
            y=float(y + generator.uniform(-0.04, 0.04)),
            radius=float(generator.uniform(0.13, 0.15)),
        )
        for (color, shape), x in zip(looks, (0.27, 0.73))
    )


def _scene(generator: np.random.Generator, objects: tuple[SceneObject, ...]) -> Scene:
    background = str(generator.choice(BACKGROUNDS))
    return Scene(objects, background, seed=int(generator.integers(_SEED_LIMIT)))
