r"""Free descriptions of scenes: :func:`describe` draws one, and what each word speaks of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from captum_mllm.datasets.phrasing import NUMBERS, Draft, Exchange, plural, unique
from captum_mllm.datasets.relations import relation, size_word
from captum_mllm.datasets.scenes import Scene


def _listed(draft: Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
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


def _counted(draft: Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """How many there are, which they are, and what they have in common."""
    things = [draft.scene.objects[index] for index in order]
    noun = "shape" if generator.random() < 0.5 else "object"
    many = len(order) > 1
    draft.say("there are" if many else "there is").say(NUMBERS[len(order)])
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
    told = [rank for rank, index in enumerate(order) if index in unique(draft.scene, "color")]
    if told:
        index, word = order[told[0]], words[told[0]]
        draft.say("the").say(draft.scene.objects[index].color, index)
        draft.say("one is").say(word, index).say(".")


def _told(draft: Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
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


def _ends(draft: Draft, order: tuple[int, ...], generator: np.random.Generator) -> None:
    """The first and the last object from the left, and those between."""
    if len(order) == 1:
        draft.say("the only shape is").introduce(order[0]).say(".")
        return
    draft.say("the leftmost shape is").introduce(order[0])
    draft.say("and the rightmost one is").introduce(order[-1]).say(".")
    if len(order) > 2:
        draft.say("between them, there is").enumerate(order[1:-1]).say(".")


_Form = Callable[[Draft, tuple[int, ...], np.random.Generator], None]

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
    draft = Draft(scene)
    form(draft, order, generator)
    return Exchange("description", request, draft.phrasing())
