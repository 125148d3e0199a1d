"""Captions say what is there, and each word knows what it speaks of."""

from __future__ import annotations

import pytest

from captum_mllm.datasets.captions import CAPTION_STYLES, CAPTION_WORDS, caption
from captum_mllm.datasets.relations import comparison, relation, size_word
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import BACKGROUND, COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES

STAR = SceneObject("star", "red", x=0.2, y=0.2, radius=0.1)
RING = SceneObject("ring", "blue", x=0.6, y=0.7, radius=0.2, striped=True)
MOON = SceneObject("moon", "pink", x=0.9, y=0.5, radius=0.1)
PLATE = SceneObject("circle", "green", x=0.25, y=0.22, radius=0.3)


@pytest.mark.parametrize(
    ("style", "objects", "words"),
    [
        ("caption", (), "there is a dark background ."),
        ("caption", (STAR,), "there is a red star on a dark background ."),
        (
            "caption",
            (MOON, RING, STAR),
            "a red star is above a striped blue ring and a pink moon on a dark background .",
        ),
        (
            "caption",
            (PLATE, STAR),
            "a red star is inside a green circle on a dark background .",
        ),
        ("dense", (), "there is a dark background ."),
        (
            "dense",
            (RING,),
            "there is a blue ring . the ring is striped and big . the background is dark .",
        ),
        (
            "dense",
            (MOON, RING, STAR),
            "there is a red star and a blue ring and a pink moon . the star is plain and small . "
            "the ring is below the star .",
        ),
        ("relations", (STAR,), "the red star is alone ."),
        (
            "relations",
            (RING, STAR),
            "the red star is left of the blue ring . the star is above the ring . "
            "the ring is bigger than the star .",
        ),
        (
            "relations",
            (PLATE, STAR, MOON),
            "the red star is left of the pink moon . the star is inside the green circle . "
            "the moon is as big as the star .",
        ),
    ],
)
def test_captions_of_known_scenes(style: str, objects: tuple[SceneObject, ...], words: str) -> None:
    assert str(caption(Scene(objects, "dark"), style)) == words


def test_objects_of_one_shape_keep_their_colour() -> None:
    other = SceneObject("star", "blue", x=0.6, y=0.7, radius=0.1)
    spoken = str(caption(Scene((STAR, other)), "relations"))
    assert spoken.startswith("the red star is left of the blue star . the red star is above")


def test_words_of_a_caption_speak_of_objects_relations_and_background() -> None:
    spoken = caption(Scene((STAR, RING), "dark"), "relations")
    assert spoken.objects[:10] == ((0,),) * 3 + ((), (0, 1), (0, 1)) + ((1,),) * 3 + ((),)
    spoken = caption(Scene((RING,), "dark"), "dense")
    assert spoken.objects[-5:] == ((BACKGROUND,),) * 2 + ((), (BACKGROUND,), ())


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_every_word_speaks_of_what_it_names(style: str) -> None:
    for seed in range(60):
        scene = sample_scene(seed, prior=0.3, contact=0.4)
        spoken = caption(scene, style)
        assert len(spoken.words) == len(spoken.objects) == len(spoken.kinds)
        assert set(spoken.words) <= set(CAPTION_WORDS)
        for word, kind, objects in zip(spoken.words, spoken.kinds, spoken.objects):
            things = [scene.objects[index] for index in objects if index != BACKGROUND]
            if word in SHAPES:
                assert kind == "noun" and [thing.shape for thing in things] == [word]
            elif word in COLORS:
                assert kind == "attribute" and [thing.color for thing in things] == [word]
            elif word in ("striped", "plain"):
                assert kind == "attribute" and things[0].striped == (word == "striped")
            elif word in ("bigger", "smaller"):
                assert kind == "other" and comparison(*things).startswith(word)
            elif word in ("above", "below", "beside", "inside", "around", "under"):
                assert kind == "other" and relation(scene, *objects) == word
            elif word == "small":
                assert [size_word(thing) for thing in things] == ["small"]
            elif word in ("background", "dark", "light"):
                assert objects == (BACKGROUND,)
            elif word in ("is", "and", "there", "."):
                assert objects == ()
        named = {index for objects in spoken.objects for index in objects if index >= 0}
        assert named == set(range(len(scene.objects)))


def test_captions_name_objects_from_left_to_right() -> None:
    for seed in range(30):
        scene = sample_scene(seed, objects=3)
        for style in ("caption", "dense"):
            named = [index for objects in caption(scene, style).objects for index in objects]
            order = dict.fromkeys(index for index in named if index >= 0)
            assert tuple(order) == scene.reading_order()


def test_vocabulary_has_no_word_twice() -> None:
    assert len(set(CAPTION_WORDS)) == len(CAPTION_WORDS)


def test_unknown_style_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"'haiku'.*caption.*dense.*relations"):
        caption(sample_scene(0), style="haiku")
