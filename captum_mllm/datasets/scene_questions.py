r"""Questions about scenes: :func:`ask` draws one with its answer, and what each word speaks of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from captum_mllm.datasets.phrasing import NUMBERS, Draft, Exchange, article, plural, unique
from captum_mllm.datasets.relations import comparison
from captum_mllm.datasets.scenes import BACKGROUND, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES


def _pick(generator: np.random.Generator, options: list[int]) -> int | None:
    return options[generator.integers(len(options))] if options else None


def _color(draft: Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, unique(draft.scene, "shape"))
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


def _shape(draft: Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, unique(draft.scene, "color"))
    if index is None:
        return None
    thing = draft.scene.objects[index]
    form = generator.integers(3)
    if form == 0:
        draft.say(f"{article(thing.shape)} {thing.shape}", index).say(".")
        return f"What is {thing.color}?"
    if form == 1:
        draft.say(thing.shape, index).say(".")
        return f"What shape is the {thing.color} object?"
    draft.say("it is").say(f"{article(thing.shape)} {thing.shape}", index).say(".")
    return f"What is the {thing.color} thing?"


def _presence(draft: Draft, generator: np.random.Generator) -> str | None:
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
            draft.say("yes, there is").say(f"{article(name)} {name}", *owners).say(".")
        else:
            draft.say("no, there is no").say(name).say(".")
        return f"Is there {article(name)} {name}?"
    if form == 1:
        draft.say("yes." if there else "no.")
        return f"Do you see {article(name)} {name}?"
    draft.say("yes." if there else f"no, there are no {plural(name)}.")
    return f"Are there any {plural(name)}?"


def _count(draft: Draft, generator: np.random.Generator) -> str | None:
    count = len(draft.scene.objects)
    noun = "shape" if generator.random() < 0.5 else "object"
    if generator.random() < 0.5:
        draft.say(NUMBERS[count]).say(".")
    elif count == 1:
        draft.say("there is one").say(noun).say(".")
    else:
        draft.say("there are").say(NUMBERS[count]).say(plural(noun)).say(".")
    return f"How many {plural(noun)} are there?"


def _texture(draft: Draft, generator: np.random.Generator) -> str | None:
    index = _pick(generator, unique(draft.scene, "shape"))
    if index is None:
        return None
    thing = draft.scene.objects[index]
    asked = "striped" if generator.random() < 0.5 else "plain"
    true = "striped" if thing.striped else "plain"
    draft.say("yes" if asked == true else "no").say(", it is").say(true, index).say(".")
    return f"Is the {thing.shape} {asked}?"


def _size(draft: Draft, generator: np.random.Generator) -> str | None:
    options = unique(draft.scene, "shape")
    if len(options) < 2:
        return None
    first, second = (int(index) for index in generator.permutation(options)[:2])
    things = draft.scene.objects
    draft.say("the").say(things[first].shape, first).say("is")
    draft.say(comparison(things[first], things[second]), first, second)
    draft.say("the").say(things[second].shape, second).say(".")
    return f"Is the {things[first].shape} bigger or smaller than the {things[second].shape}?"


def _background(draft: Draft, generator: np.random.Generator) -> str | None:
    if generator.random() < 0.5:
        draft.say(draft.scene.background, BACKGROUND).say(".")
        return "Is the background dark or light?"
    draft.say("the background", BACKGROUND).say("is").say(draft.scene.background, BACKGROUND)
    draft.say(".")
    return "What is the background like?"


_QUESTIONS: dict[str, Callable[[Draft, np.random.Generator], str | None]] = {
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
    draft = Draft(scene)
    question = _QUESTIONS[topic](draft, generator)
    return None if question is None else Exchange(topic, question, draft.phrasing())
