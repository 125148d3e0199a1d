r"""Captions of scenes, word by word, with what each word speaks of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from captum_mllm.datasets.relations import comparison, relation, size_word
from captum_mllm.datasets.scenes import BACKGROUND, BACKGROUNDS, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES

Kind = Literal["noun", "attribute", "function", "other"]

_KINDS: dict[Kind, tuple[str, ...]] = {
    "noun": (*SHAPES, "background"),
    "attribute": (*COLORS, *BACKGROUNDS, "striped", "plain", "big", "small"),
    "function": ("a", "the", "and", "there"),
    "other": (
        *("is", "on", "above", "below", "beside", "inside", "around", "top", "of", "under"),
        *("left", "alone", "bigger", "smaller", "than", "as", "."),
    ),
}
_KIND_OF: dict[str, Kind] = {word: kind for kind, words in _KINDS.items() for word in words}

#: Every word that a caption may hold.
CAPTION_WORDS: tuple[str, ...] = tuple(_KIND_OF)


@dataclass(frozen=True)
class Caption:
    r"""A caption and what its words refer to.

    Args:
        words (tuple[str, ...]): The words; a full stop is one of them.
        objects (tuple[tuple[int, ...], ...]): For each word, the indices into ``scene.objects`` of
            what it speaks of: one for the words of an object's phrase, two for a relation,
            :data:`~captum_mllm.datasets.scenes.BACKGROUND` for the background, none for words such
            as "and".
    """

    words: tuple[str, ...]
    objects: tuple[tuple[int, ...], ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        r"""For each word ``"noun"``, ``"attribute"``, ``"function"`` or ``"other"``.

        Nouns name an object or the background, attributes say how it looks. Function words are
        articles, conjunctions and "there"; all else, such as verbs, prepositions and full stops,
        is other. Metrics that know no attributes count them as other.
        """
        return tuple(_KIND_OF[word] for word in self.words)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        r"""For each word, where it starts and ends in the text, in characters."""
        stops = itertools.accumulate(len(word) + 1 for word in self.words)
        return tuple((stop - 1 - len(word), stop - 1) for word, stop in zip(self.words, stops))

    def __str__(self) -> str:
        return " ".join(self.words)


class _Draft:
    """A caption in the making: phrases are added one by one."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._pairs: list[tuple[str, tuple[int, ...]]] = []
        self._named: set[int] = set()

    def say(self, words: str, *objects: int) -> _Draft:
        """Add words that speak of some objects, or of nothing in the image."""
        self._pairs += [(word, objects) for word in words.split()]
        return self

    def introduce(self, index: int, texture: bool = False) -> _Draft:
        """Name an object at length: "a striped red star"."""
        thing = self.scene.objects[index]
        striped = "striped " if texture and thing.striped else ""
        self._named.add(index)
        return self.say(f"a {striped}{thing.color} {thing.shape}", index)

    def refer(self, index: int) -> _Draft:
        """Name an object as one that is known: "the star", with its colour where it is new or
        another object has its shape."""
        thing = self.scene.objects[index]
        unique = sum(other.shape == thing.shape for other in self.scene.objects) == 1
        color = "" if index in self._named and unique else f"{thing.color} "
        self._named.add(index)
        return self.say(f"the {color}{thing.shape}", index)

    def relate(self, first: int, second: int) -> _Draft:
        """Say how an object lies to another: "is above"."""
        return self.say("is").say(relation(self.scene, first, second), first, second)

    def end(self) -> _Draft:
        """End a sentence."""
        return self.say(".")

    def caption(self) -> Caption:
        """What was said."""
        return Caption(
            tuple(word for word, _ in self._pairs), tuple(objects for _, objects in self._pairs)
        )


def _empty(draft: _Draft) -> None:
    draft.say("there is").say(f"a {draft.scene.background} background", BACKGROUND).end()


def _brief(draft: _Draft, order: tuple[int, ...]) -> None:
    """One sentence: the objects, the relation of the first two, the background."""
    if len(order) == 1:
        draft.say("there is")
    draft.introduce(order[0], texture=True)
    for rank, index in enumerate(order[1:]):
        if rank == 0:
            draft.relate(order[0], index)
        else:
            draft.say("and")
        draft.introduce(index, texture=True)
    draft.say("on a").say(f"{draft.scene.background} background", BACKGROUND).end()


def _dense(draft: _Draft, order: tuple[int, ...]) -> None:
    """What there is, how the first object looks, and where the second is."""
    draft.say("there is")
    for rank, index in enumerate(order):
        if rank > 0:
            draft.say("and")
        draft.introduce(index)
    first = draft.scene.objects[order[0]]
    draft.end().refer(order[0]).say("is").say("striped" if first.striped else "plain", order[0])
    draft.say("and").say(size_word(first), order[0]).end()
    if len(order) > 1:
        draft.refer(order[1]).relate(order[1], order[0]).refer(order[0]).end()
    else:
        draft.say("the background", BACKGROUND).say("is")
        draft.say(draft.scene.background, BACKGROUND).end()


def _relations(draft: _Draft, order: tuple[int, ...]) -> None:
    """Left and right, contact or height, and size."""
    first, last = order[0], order[-1]
    if len(order) == 1:
        draft.refer(first).say("is").say("alone", first).end()
        return
    draft.refer(first).say("is").say("left of", first, last).refer(last).end()
    draft.refer(first).relate(first, order[1]).refer(order[1]).end()
    compared = comparison(draft.scene.objects[last], draft.scene.objects[first])
    draft.refer(last).say("is").say(compared, last, first).refer(first).end()


_STYLES: dict[str, Callable[[_Draft, tuple[int, ...]], None]] = {
    "caption": _brief,
    "dense": _dense,
    "relations": _relations,
}

#: The names of the styles there are.
CAPTION_STYLES: tuple[str, ...] = tuple(_STYLES)


def caption(scene: Scene, style: str = "caption") -> Caption:
    r"""Describe a scene in words.

    Args:
        scene (Scene): The scene.
        style (str): One of :data:`CAPTION_STYLES`. Default: ``"caption"``

            - ``"caption"``: one sentence. The objects from left to right, how the first two lie to
              each other, and the background, as in "a red circle is above a striped blue star and
              a green ring on a dark background ."
            - ``"dense"``: three sentences that come back to objects already named, as in "there is
              a red circle and a blue star and a green ring . the circle is plain and big . the
              star is below the circle ."
            - ``"relations"``: three sentences about pairs of objects, as in "the red circle is
              left of the green ring . the circle is above the blue star . the ring is smaller than
              the circle ."

    Returns:
        Caption: The words and what they speak of.

    Raises:
        ValueError: If there is no such style.

    Examples::

        >>> from captum_mllm.datasets.scenes import Scene, SceneObject
        >>> scene = Scene((SceneObject("star", "pink", x=0.5, y=0.5, radius=0.1),), "dark")
        >>> str(caption(scene))
        'there is a pink star on a dark background .'
        >>> caption(scene).objects
        ((), (), (0,), (0,), (0,), (), (), (-1,), (-1,), ())
        >>> str(caption(scene, style="relations"))
        'the pink star is alone .'
    """
    if style not in _STYLES:
        raise ValueError(f"No style is called {style!r}; there are {', '.join(CAPTION_STYLES)}.")
    draft = _Draft(scene)
    order = scene.reading_order()
    if order:
        _STYLES[style](draft, order)
    else:
        _empty(draft)
    return draft.caption()
