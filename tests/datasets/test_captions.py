"""Captions say what is there, and each word knows its object."""

from __future__ import annotations

import pytest

from captum_mllm.datasets.captions import (
    BACKGROUND,
    CAPTION_WORDS,
    NO_OBJECT,
    caption,
)
from captum_mllm.datasets.scenes import COLORS, Scene, SceneObject, sample_scene
from captum_mllm.datasets.shapes import SHAPES

STAR = SceneObject("star", "red", x=0.2, y=0.2, radius=0.1)
RING = SceneObject("ring", "blue", x=0.6, y=0.7, radius=0.1, striped=True)
MOON = SceneObject("moon", "pink", x=0.9, y=0.5, radius=0.1)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ((), "there is a dark background ."),
        ((STAR,), "there is a red star on a dark background ."),
        ((RING, STAR), "a red star is above a striped blue ring on a dark background ."),
        (
            (MOON, RING, STAR),
            "a red star is above a striped blue ring and a pink moon on a dark background .",
        ),
    ],
)
def test_objects_are_named_from_left_to_right(objects: tuple[SceneObject, ...], words: str) -> None:
    assert str(caption(Scene(objects, "dark"))) == words


@pytest.mark.parametrize(("y", "relation"), [(0.05, "below"), (0.25, "beside"), (0.4, "above")])
def test_relation_follows_the_heights(y: float, relation: str) -> None:
    other = SceneObject("ring", "blue", x=0.6, y=y, radius=0.1)
    assert relation in caption(Scene((STAR, other))).words


def test_every_word_points_to_the_object_it_names() -> None:
    for seed in range(60):
        scene = sample_scene(seed, prior=0.3)
        spoken = caption(scene)
        assert len(spoken.words) == len(spoken.objects)
        assert set(spoken.words) <= set(CAPTION_WORDS)
        for word, index in zip(spoken.words, spoken.objects):
            if word in SHAPES:
                assert scene.objects[index].shape == word
            elif word in COLORS:
                assert scene.objects[index].color == word
            elif word == "striped":
                assert scene.objects[index].striped
            elif word in ("background", "dark", "light"):
                assert index == BACKGROUND
            elif word != "a":
                assert index == NO_OBJECT
        named = [index for index in spoken.objects if index >= 0]
        assert list(dict.fromkeys(named)) == list(scene.reading_order())


def test_vocabulary_has_no_word_twice() -> None:
    assert len(set(CAPTION_WORDS)) == len(CAPTION_WORDS)


def test_unknown_style_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"'haiku'.*caption"):
        caption(sample_scene(0), style="haiku")
