r"""Captions of scenes, word by word, with the object that each word speaks of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, LEVEL, Scene
from captum_mllm.datasets.shapes import SHAPES

#: Marks a word that speaks of no part of the picture, such as "and".
NO_OBJECT = -1

#: Marks a word that speaks of the background.
BACKGROUND = -2

_FUNCTION_WORDS = ("a", "and", "is", "on", "there", ".")
_RELATIONS = ("above", "below", "beside")

#: Every word that a caption may hold.
CAPTION_WORDS: tuple[str, ...] = (
    *_FUNCTION_WORDS,
    *_RELATIONS,
    "background",
    *BACKGROUNDS,
    "striped",
    *SHAPES,
    *COLORS,
)


@dataclass(frozen=True)
class Caption:
    r"""A caption and what its words refer to.

    Args:
        words (tuple[str, ...]): The words; the full stop is one of them.
        objects (tuple[int, ...]): For each word, the index into ``scene.objects`` of the object it
            speaks of, :data:`BACKGROUND`, or :data:`NO_OBJECT`.
    """

    words: tuple[str, ...]
    objects: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def _relation(scene: Scene, first: int, second: int) -> str:
    drop = scene.objects[second].y - scene.objects[first].y
    if abs(drop) < LEVEL:
        return "beside"
    return "above" if drop > 0 else "below"


def _sentence(scene: Scene) -> list[tuple[str, int]]:
    """The objects from left to right, the relation of the first two, the background."""

    def phrase(index: int) -> list[tuple[str, int]]:
        thing = scene.objects[index]
        words = ["a"] + ["striped"] * thing.striped + [thing.color, thing.shape]
        return [(word, index) for word in words]

    order = scene.reading_order()
    words: list[tuple[str, int]] = []
    if len(order) < 2:
        words += [("there", NO_OBJECT), ("is", NO_OBJECT)]
    if order:
        words += phrase(order[0])
    else:
        words += [("a", BACKGROUND), (scene.background, BACKGROUND), ("background", BACKGROUND)]
    for rank, index in enumerate(order[1:]):
        if rank == 0:
            words += [("is", NO_OBJECT), (_relation(scene, order[0], index), NO_OBJECT)]
        else:
            words += [("and", NO_OBJECT)]
        words += phrase(index)
    if order:
        words += [("on", NO_OBJECT), ("a", NO_OBJECT)]
        words += [(scene.background, BACKGROUND), ("background", BACKGROUND)]
    return words + [(".", NO_OBJECT)]


_STYLES: dict[str, Callable[[Scene], list[tuple[str, int]]]] = {"caption": _sentence}

#: The names of the styles there are.
CAPTION_STYLES: tuple[str, ...] = tuple(_STYLES)


def caption(scene: Scene, style: str = "caption") -> Caption:
    r"""Describe a scene in words.

    The style ``"caption"`` is one sentence: the objects from left to right, how the first two lie
    to each other, and the background, as in "a red circle is above a striped blue star and a green
    ring on a dark background ."

    Args:
        scene (Scene): The scene.
        style (str): One of :data:`CAPTION_STYLES`. Default: ``"caption"``

    Returns:
        Caption: The words and the objects they speak of.

    Raises:
        ValueError: If there is no such style.

    Examples::

        >>> from captum_mllm.datasets.scenes import Scene, SceneObject
        >>> scene = Scene((SceneObject("star", "pink", x=0.5, y=0.5, radius=0.1),), "dark")
        >>> str(caption(scene))
        'there is a pink star on a dark background .'
        >>> caption(scene).objects
        (-1, -1, 0, 0, 0, -1, -1, -2, -2, -1)
    """
    if style not in _STYLES:
        raise ValueError(f"No style is called {style!r}; there are {', '.join(CAPTION_STYLES)}.")
    pairs = _STYLES[style](scene)
    return Caption(tuple(word for word, _ in pairs), tuple(index for _, index in pairs))
