"""Natural writing: spelling, truth of what is said, references of words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from captum_mllm.datasets import CAPTION_STYLES, COLORS, SHAPES, Scene, SceneObject, caption
from captum_mllm.datasets import sample_scene as sample
from captum_mllm.datasets.descriptions import describe
from captum_mllm.datasets.phrasing import Exchange, Phrasing, natural, plural
from captum_mllm.datasets.scene_questions import QUESTION_TOPICS, ask

STAR = SceneObject("star", "orange", x=0.2, y=0.5, radius=0.1)
RING = SceneObject("ring", "blue", x=0.8, y=0.5, radius=0.2, striped=True)
SCENE = Scene((RING, STAR), "dark")


def drawn(count: int) -> list[tuple[Scene, Exchange]]:
    found = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        scene = sample(generator, contact=0.3, similarity=0.2)
        found.append((scene, describe(scene, generator)))
        for topic in QUESTION_TOPICS:
            exchange = ask(scene, generator, topic)
            if exchange is not None:
                found.append((scene, exchange))
    return found


DRAWN = drawn(60)


def test_a_caption_is_written_in_the_same_words() -> None:
    assert str(natural(caption(SCENE))) == (
        "An orange star is beside a striped blue ring on a dark background."
    )
    for style in CAPTION_STYLES:
        plain, written = caption(SCENE, style), natural(caption(SCENE, style))
        assert [word.lower() for word in written.words] == [
            "an" if word == "a" and after == "orange" else word
            for word, after in zip(plain.words, (*plain.words[1:], ""))
        ]
        assert written.objects == plain.objects
        assert written.kinds == tuple(
            "function" if word == "an" else kind for word, kind in zip(written.words, plain.kinds)
        )


@pytest.mark.parametrize("answer", [exchange.answer for _, exchange in DRAWN[:40]], ids=str)
def test_spans_cut_the_words_out_of_the_text(answer: Phrasing) -> None:
    text = str(answer)
    assert tuple(text[start:stop] for start, stop in answer.spans) == answer.words
    assert len(answer.objects) == len(answer.words) == len(answer.kinds)


def test_sentences_begin_with_capitals_and_end_with_full_stops() -> None:
    for _, exchange in DRAWN:
        text = str(exchange.answer)
        assert text[0].isupper()
        assert text.endswith(".")
        assert " ." not in text
        assert " ," not in text
        sentences = text.split(". ")
        assert all(sentence[0].isupper() for sentence in sentences)
        assert exchange.question[-1] in "?."


def test_articles_fit() -> None:
    for _, exchange in DRAWN:
        words = [*exchange.question.strip("?.").split(), *exchange.answer.words]
        for word, after in itertools.pairwise(words):
            if word.lower() in ("a", "an"):
                assert (word.lower() == "an") == (after[0] in "aeiou"), f"{word} {after}"


def test_named_colours_and_shapes_are_those_of_the_objects_spoken_of() -> None:
    singular = {plural(shape): shape for shape in SHAPES}
    named = 0
    for scene, exchange in DRAWN:
        for word, objects in zip(exchange.answer.words, exchange.answer.objects):
            word = word.lower()
            word = singular.get(word, word)
            for index in objects:
                thing = scene.objects[index] if index >= 0 else None
                if word in SHAPES:
                    assert thing is not None
                    assert thing.shape == word
                    named += 1
                if word in COLORS:
                    assert thing is not None
                    assert thing.color == word
                    named += 1
                if word in ("striped", "plain"):
                    assert thing is not None
                    assert thing.striped == (word == "striped")
    assert named > 300


def test_what_is_absent_refers_to_nothing_and_is_absent() -> None:
    answers = {"Yes": 0, "No": 0}
    for seed in range(300):
        generator = np.random.default_rng(seed)
        scene = sample(generator)
        exchange = ask(scene, generator, "presence")
        assert exchange is not None
        answer = exchange.answer.words[0]
        answers[answer] += 1
        asked = exchange.question.strip("?").split()
        looks = [(thing.color, thing.shape) for thing in scene.objects]
        colors = [word for word in asked if word in COLORS]
        shapes = [shape for shape in SHAPES if shape in asked or plural(shape) in asked]
        there = any(
            (not colors or color in colors) and (not shapes or shape in shapes)
            for color, shape in looks
        )
        assert there == (answer == "Yes"), exchange
        if not there:
            assert not any(exchange.answer.objects)
    assert abs(answers["Yes"] - answers["No"]) < 60


def test_what_is_not_unique_is_not_asked_for() -> None:
    twins = Scene((STAR, SceneObject("star", "blue", x=0.8, y=0.5, radius=0.1)))
    generator = np.random.default_rng(0)
    assert ask(twins, generator, "color") is None
    assert ask(twins, generator, "size") is None
    shape = ask(twins, generator, "shape")
    assert shape is not None
    assert "star" in str(shape.answer).lower()


def test_the_same_seed_gives_the_same_texts() -> None:
    assert drawn(5) == drawn(5)
    assert len({exchange.question for _, exchange in DRAWN}) > 60


def test_errors() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"No topic is called 'weather'"):
        ask(SCENE, generator, "weather")
    with pytest.raises(ValueError, match="without objects"):
        ask(Scene(()), generator, "color")
    with pytest.raises(ValueError, match="without objects"):
        describe(Scene(()), generator)
