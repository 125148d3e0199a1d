r"""Natural writing about scenes: captions in ordinary spelling, free descriptions, questions with
their answers.

:func:`natural` writes a caption as people do, :func:`describe` draws a description, :func:`ask` a
question about a scene. All of them keep what each word speaks of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from captum_mllm.datasets.captions import Caption, Kind
from captum_mllm.datasets.relations import comparison, relation, size_word
from captum_mllm.datasets.scenes import BACKGROUND, BACKGROUNDS, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES

_NUMBERS = ("no", "one", "two", "three", "four", "five")
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


class _Draft:
    """Sentences in the making."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._pairs: list[tuple[str, tuple[int, ...]]] = []

    def say(self, words: str, *objects: int) -> _Draft:
        """Add words that speak of some objects, or of nothing in the image."""
        for word in words.split():
            bare = word.rstrip(".,;:?!")
            self._pairs += [(bare, objects)] if bare else []
            self._pairs += [(mark, ()) for mark in word[len(bare) :]]
        return self

    def introduce(self, index: int, texture: bool = True) -> _Draft:
        """Name an object at length: "a striped red star", "an orange ring"."""
        thing = self.scene.objects[index]
        look = f"{'striped ' if texture and thing.striped else ''}{thing.color} {thing.shape}"
        return self.say(f"{_article(look)} {look}", index)

    def enumerate(self, order: tuple[int, ...]) -> _Draft:
        """Name objects one after the other: "a red star, a blue ring and a green cross"."""
        for rank, index in enumerate(order):
            if rank and rank == len(order) - 1:
                self.say("and")
            elif rank:
                self.say(",")
            self.introduce(index)
        return self

    def setting(self) -> _Draft:
        """Add "on a dark background"."""
        return self.say("on a").say(f"{self.scene.background} background", BACKGROUND)

    def phrasing(self) -> Phrasing:
        """What was said, with capital letters where sentences begin."""
        words, begins = [], True
        for word, _ in self._pairs:
            words.append(word[0].upper() + word[1:] if begins else word)
            begins = word in ".?!"
        return Phrasing(tuple(words), tuple(objects for _, objects in self._pairs))


def _article(noun_phrase: str) -> str:
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
            word = _article(after)
        words.append(word.capitalize() if begins else word)
        begins = word == "."
    return Phrasing(tuple(words), caption.objects)


def _listed(draft: _Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """One sentence that lists the objects."""
    form = generator.integers(4)
    if form == 0:
        draft.say("the image shows").enumerate(order).setting()
    elif form == 1:
        draft.say("I can see").enumerate(order)
    elif form == 2:
        draft.setting().say("there is" if len(order) == 1 else "there are").enumerate(order)
    else:
        draft.say("this is").enumerate(order).setting()
    draft.say(".")


def _counted(draft: _Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """How many there are, which they are, and what they have in common."""
    things = [draft.scene.objects[index] for index in order]
    noun = "shape" if generator.random() < 0.5 else "object"
    many = len(order) > 1
    draft.say("there are" if many else "there is").say(_NUMBERS[len(order)])
    draft.say(plural(noun) if many else noun).say(":").enumerate(order).say(".")
    if not many:
        draft.say("it is").say(size_word(things[0]), order[0]).say(".")
        return
    looks = ["striped" if thing.striped else "plain" for thing in things]
    sizes = [size_word(thing) for thing in things]
    words = sizes if generator.random() < 0.5 else looks
    if len(set(words)) == 1:
        draft.say("both are" if len(order) == 2 else "all of them are").say(words[0], *order)
        draft.say(".")
        return
    told = [rank for rank, index in enumerate(order) if index in _unique(draft.scene, "color")]
    if told:
        index, word = order[told[0]], words[told[0]]
        draft.say("the").say(draft.scene.objects[index].color, index)
        draft.say("one is").say(word, index).say(".")


def _told(draft: _Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """One object after the other, with pronouns."""
    first = order[0]
    draft.say("there is").introduce(first, texture=False).say(".")
    draft.say("it is").say("striped" if draft.scene.objects[first].striped else "plain", first)
    draft.say("and").say(size_word(draft.scene.objects[first]), first)
    if len(order) > 1:
        second = order[1]
        draft.say(", and it is").say(relation(draft.scene, first, second), first, second)
        draft.introduce(second, texture=False)
    draft.say(".")
    if len(order) > 2:
        draft.say("to the right of them, there is").introduce(order[2], texture=False).say(".")


def _ends(draft: _Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """The first and the last object from the left, and those between."""
    if len(order) == 1:
        draft.say("the only shape is").introduce(order[0]).say(".")
        return
    draft.say("the leftmost shape is").introduce(order[0])
    draft.say("and the rightmost one is").introduce(order[-1]).say(".")
    if len(order) > 2:
        draft.say("between them, there is").enumerate(order[1:-1]).say(".")


_Form = Callable[[_Draft, tuple[int, ...], np.random.Generator], None]

#: How a description may be asked for, and the forms that answer.
_DESCRIPTIONS: tuple[tuple[tuple[str, ...], _Form], ...] = (
    (("What do you see?", "What does the image show?", "Write a caption."), _listed),
    (("List the shapes.", "How many shapes are there, and which?"), _counted),
    (("Tell me about the image.", "Describe what is in the image."), _told),
    (("What is on the left and what is on the right?",), _ends),
)


def describe(scene: Scene, generator: np.random.Generator) -> Exchange:
    r"""Draw a request for a description, and a description that answers it.

    Objects come from left to right.

    Args:
        scene (Scene): The scene, of at least one object.
        generator (numpy.random.Generator): The source of randomness.

    Returns:
        Exchange: The request and the description.

    Raises:
        ValueError: If the scene has no object.

    Examples::

        >>> from captum_mllm.datasets.scenes import SceneObject
        >>> scene = Scene((SceneObject("star", "orange", x=0.5, y=0.5, radius=0.1),), "dark")
        >>> exchange = describe(scene, np.random.default_rng(1))
        >>> exchange.question, str(exchange.answer)
        ('How many shapes are there, and which?',
         'There is one object: an orange star. It is small.')
    """
    order = scene.reading_order()
    if not order:
        raise ValueError("A scene without objects cannot be described.")
    requests, form = _DESCRIPTIONS[generator.integers(len(_DESCRIPTIONS))]
    request = requests[generator.integers(len(requests))]
    draft = _Draft(scene)
    form(draft, order, generator)
    return Exchange("description", request, draft.phrasing())


def _pick(generator: np.random.Generator, options: list[int]) -> int | None:
    return options[generator.integers(len(options))] if options else None


def _unique(scene: Scene, attribute: str) -> list[int]:
    """Objects that their shape, or their colour, tells apart from all others."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [index for index, value in enumerate(values) if values.count(value) == 1]


def _color(draft: _Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, _unique(draft.scene, "shape"))
    if index is None:
        return None
    thing = draft.scene.objects[index]
    spelling = "colour" if generator.random() < 0.5 else "color"
    form = generator.integers(3)
    if form == 0:
        draft.say(thing.color, index).say(".")
        return f"What {spelling} is the {thing.shape}?"
    if form == 1:
        draft.say("it is").say(thing.color, index).say(".")
        return f"Which {spelling} does the {thing.shape} have?"
    draft.say(f"the {thing.shape}", index).say("is").say(thing.color, index).say(".")
    return f"Tell me the {spelling} of the {thing.shape}."


def _shape(draft: _Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, _unique(draft.scene, "color"))
    if index is None:
        return None
    thing = draft.scene.objects[index]
    form = generator.integers(3)
    if form == 0:
        draft.say(f"{_article(thing.shape)} {thing.shape}", index).say(".")
        return f"What is {thing.color}?"
    if form == 1:
        draft.say(thing.shape, index).say(".")
        return f"What shape is the {thing.color} object?"
    draft.say("it is").say(f"{_article(thing.shape)} {thing.shape}", index).say(".")
    return f"What is the {thing.color} thing?"


def _presence(draft: _Draft, generator: np.random.Generator) -> str | None:
    """Yes and no with equal odds; absent are a shape, a colour, or their combination."""
    things = draft.scene.objects
    there = generator.random() < 0.5
    aspect = ("shape", "shape", "color", "both")[generator.integers(4)]
    index = int(generator.integers(len(things)))
    shape, color = things[index].shape, things[index].color
    if not there:
        shapes = [name for name in SHAPES if all(name != thing.shape for thing in things)]
        colors = [name for name in COLORS if all(name != thing.color for thing in things)]
        if aspect != "color" and (aspect == "shape" or generator.random() < 0.5):
            shape = shapes[generator.integers(len(shapes))]
        else:
            color = colors[generator.integers(len(colors))]
    name = {"shape": shape, "color": f"{color} object", "both": f"{color} {shape}"}[aspect]
    owners = [
        number
        for number, thing in enumerate(things)
        if aspect == "color" or thing.shape == shape
        if aspect == "shape" or thing.color == color
    ]
    form = generator.integers(3)
    if form == 0:
        if there:
            draft.say("yes, there is").say(f"{_article(name)} {name}", *owners).say(".")
        else:
            draft.say("no, there is no").say(name).say(".")
        return f"Is there {_article(name)} {name}?"
    if form == 1:
        draft.say("yes." if there else "no.")
        return f"Do you see {_article(name)} {name}?"
    draft.say("yes." if there else f"no, there are no {plural(name)}.")
    return f"Are there any {plural(name)}?"


def _count(draft: _Draft, generator: np.random.Generator) -> str | None:
    count = len(draft.scene.objects)
    noun = "shape" if generator.random() < 0.5 else "object"
    if generator.random() < 0.5:
        draft.say(_NUMBERS[count]).say(".")
    elif count == 1:
        draft.say("there is one").say(noun).say(".")
    else:
        draft.say("there are").say(_NUMBERS[count]).say(plural(noun)).say(".")
    return f"How many {plural(noun)} are there?"


def _texture(draft: _Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, _unique(draft.scene, "shape"))
    if index is None:
        return None
    thing = draft.scene.objects[index]
    asked = "striped" if generator.random() < 0.5 else "plain"
    true = "striped" if thing.striped else "plain"
    draft.say("yes" if asked == true else "no").say(", it is").say(true, index).say(".")
    return f"Is the {thing.shape} {asked}?"


def _size(draft: _Draft, generator: np.random.Generator) -> str | None:
    options = _unique(draft.scene, "shape")
    if len(options) < 2:
        return None
    first, second = (int(index) for index in generator.permutation(options)[:2])
    things = draft.scene.objects
    draft.say("the").say(things[first].shape, first).say("is")
    draft.say(comparison(things[first], things[second]), first, second)
    draft.say("the").say(things[second].shape, second).say(".")
    return f"Is the {things[first].shape} bigger or smaller than the {things[second].shape}?"


def _background(draft: _Draft, generator: np.random.Generator) -> str | None:
    if generator.random() < 0.5:
        draft.say(draft.scene.background, BACKGROUND).say(".")
        return "Is the background dark or light?"
    draft.say("the background", BACKGROUND).say("is").say(draft.scene.background, BACKGROUND)
    draft.say(".")
    return "What is the background like?"


_QUESTIONS: dict[str, Callable[[_Draft, np.random.Generator], str | None]] = {
    "color": _color,
    "shape": _shape,
    "presence": _presence,
    "count": _count,
    "texture": _texture,
    "size": _size,
    "background": _background,
}

#: What a question may be about.
QUESTION_TOPICS: tuple[str, ...] = tuple(_QUESTIONS)


def ask(scene: Scene, generator: np.random.Generator, topic: str) -> Exchange | None:
    r"""Draw a question about a scene with a short answer.

    Args:
        scene (Scene): The scene, of at least one object.
        generator (numpy.random.Generator): The source of randomness.
        topic (str): One of :data:`QUESTION_TOPICS`. ``"presence"`` asks for what is there and for
            what is not, with equal odds.

    Returns:
        Exchange | None: The question and its answer; None if the scene leaves nothing to ask, as
        for the colour of "the star" where there are two stars.

    Raises:
        ValueError: If there is no such topic, or the scene has no object.

    Examples::

        >>> from captum_mllm.datasets.scenes import SceneObject
        >>> scene = Scene((SceneObject("star", "orange", x=0.5, y=0.5, radius=0.1),), "dark")
        >>> exchange = ask(scene, np.random.default_rng(3), "presence")
        >>> exchange.question, str(exchange.answer)
        ('Is there a star?', 'Yes, there is a star.')
    """
    if topic not in _QUESTIONS:
        raise ValueError(f"No topic is called {topic!r}; there are {', '.join(QUESTION_TOPICS)}.")
    if not scene.objects:
        raise ValueError("A scene without objects leaves nothing to ask.")
    draft = _Draft(scene)
    question = _QUESTIONS[topic](draft, generator)
    return None if question is None else Exchange(topic, question, draft.phrasing())
