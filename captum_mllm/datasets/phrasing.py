r"""Natural writing about scenes, which keeps what each word speaks of.

:func:`natural` writes a caption as people do; :class:`Draft` builds sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

from captum_mllm.datasets.captions import Caption, Kind
from captum_mllm.datasets.scenes import BACKGROUND, BACKGROUNDS, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES

NUMBERS = ("no", "one", "two", "three", "four", "five")
_PUNCTUATION = frozenset(".,;:?!")
_FUNCTION = frozenset({"a", "an", "the", "and", "there", "no", "any", "both", "it", "they"})
_NOUNS = frozenset({*SHAPES, "background"})
_ATTRIBUTES = frozenset({*COLORS, *BACKGROUNDS, "striped", "plain", "big", "small"})


def plural(noun: str) -> str:
    r"""The plural of a shape's name.

    Args:
        noun (str): The noun.

    Returns:
        str: Its plural.

    Examples::

        >>> plural("star"), plural("cross")
        ('stars', 'crosses')
    """
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


_PLURALS = {plural(noun): noun for noun in (*SHAPES, "background")}


def _kind(word: str) -> Kind:
    word = word.lower()
    if _PLURALS.get(word, word) in _NOUNS:
        return "noun"
    if word in _ATTRIBUTES:
        return "attribute"
    return "function" if word in _FUNCTION else "other"


@dataclass(frozen=True)
class Phrasing:
    r"""Sentences in ordinary spelling and what their words refer to.

    ``str`` gives the text: words with spaces between them, punctuation attached to the word before.

    Args:
        words (tuple[str, ...]): The words as they are spelled; punctuation marks count as words.
        objects (tuple[tuple[int, ...], ...]): For each word, the indices into ``scene.objects`` of
            what it speaks of, as in :class:`~captum_mllm.datasets.Caption`.
    """

    words: tuple[str, ...]
    objects: tuple[tuple[int, ...], ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        r"""For each word ``"noun"``, ``"attribute"``, ``"function"`` or ``"other"``."""
        return tuple(_kind(word) for word in self.words)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        r"""For each word, where it starts and ends in the text, in characters."""
        spans: list[tuple[int, int]] = []
        stop = 0
        for word in self.words:
            start = stop + (bool(spans) and word not in _PUNCTUATION)
            stop = start + len(word)
            spans.append((start, stop))
        return tuple(spans)

    def __str__(self) -> str:
        text = ""
        for word in self.words:
            text += word if not text or word in _PUNCTUATION else f" {word}"
        return text


@dataclass(frozen=True)
class Exchange:
    r"""A question about a scene and its answer.

    Args:
        topic (str): ``"description"``, or one of :data:`QUESTION_TOPICS`.
        question (str): What is asked.
        answer (Phrasing): The answer, and what its words refer to.
    """

    topic: str
    question: str
    answer: Phrasing


class Draft:
    """Sentences in the making."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._pairs: list[tuple[str, tuple[int, ...]]] = []

    def say(self, words: str, *objects: int) -> Draft:
        """Add words that speak of some objects, or of nothing in the image."""
        for word in words.split():
            bare = word.rstrip(".,;:?!")
            self._pairs += [(bare, objects)] if bare else []
            self._pairs += [(mark, ()) for mark in word[len(bare) :]]
        return self

    def introduce(self, index: int, texture: bool = True) -> Draft:
        """Name an object at length: "a striped red star", "an orange ring"."""
        thing = self.scene.objects[index]
        look = f"{'striped ' if texture and thing.striped else ''}{thing.color} {thing.shape}"
        return self.say(f"{article(look)} {look}", index)

    def enumerate(self, order: tuple[int, ...]) -> Draft:
        """Name objects one after the other: "a red star, a blue ring and a green cross"."""
        for rank, index in enumerate(order):
            if rank and rank == len(order) - 1:
                self.say("and")
            elif rank:
                self.say(",")
            self.introduce(index)
        return self

    def setting(self) -> Draft:
        """Add "on a dark background"."""
        return self.say("on a").say(f"{self.scene.background} background", BACKGROUND)

    def phrasing(self) -> Phrasing:
        """What was said, with capital letters where sentences begin."""
        words, begins = [], True
        for word, _ in self._pairs:
            words.append(word[0].upper() + word[1:] if begins else word)
            begins = word in ".?!"
        return Phrasing(tuple(words), tuple(objects for _, objects in self._pairs))


def article(noun_phrase: str) -> str:
    return "an" if noun_phrase[0] in "aeiou" else "a"


def natural(caption: Caption) -> Phrasing:
    r"""Write a caption in ordinary spelling: capitals, "an", punctuation attached to words.

    Args:
        caption (Caption): The caption.

    Returns:
        Phrasing: The same words, in the same order, with what they refer to.

    Examples::

        >>> from captum_mllm.datasets.captions import caption
        >>> from captum_mllm.datasets.scenes import Scene, SceneObject
        >>> scene = Scene((SceneObject("star", "orange", x=0.5, y=0.5, radius=0.1),), "dark")
        >>> str(natural(caption(scene)))
        'There is an orange star on a dark background.'
    """
    words, begins = [], True
    for word, after in zip(caption.words, (*caption.words[1:], "")):
        if word == "a" and after:
            word = article(after)
        words.append(word.capitalize() if begins else word)
        begins = word == "."
    return Phrasing(tuple(words), caption.objects)


def unique(scene: Scene, attribute: str) -> list[int]:
    """Objects that their shape, or their colour, tells apart from all others."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [index for index, value in enumerate(values) if values.count(value) == 1]
