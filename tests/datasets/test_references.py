import itertools

import pytest

from captum_mllm.datasets import (
    CAPTION_WORDS,
    REFERENCE_KINDS,
    SHAPES,
    Reference,
    relation,
    render,
    sample_references,
)
from captum_mllm.datasets.references import ReferenceKind

by_kind = pytest.mark.parametrize("kind", REFERENCE_KINDS)


def draw(kind: ReferenceKind) -> list[Reference]:
    return sample_references(100, kind)


@by_kind
def test_a_pair_differs_in_the_cause_and_the_decided_word_alone(kind: ReferenceKind) -> None:
    for reference in draw(kind):
        differing = {
            place
            for place, pair in enumerate(zip(reference.words, reference.alternative, strict=True))
            if len(set(pair)) > 1
        }
        assert differing == {*reference.causes, reference.place}
        assert reference.words[-1] in SHAPES
        assert reference.distance >= 1


@by_kind
def test_neighbours_share_a_image(kind: ReferenceKind) -> None:
    references = draw(kind)
    for first, second in zip(references[::2], references[1::2], strict=True):
        assert second == first.swapped()
        assert second.swapped() == first
        assert first.scene is second.scene


@by_kind
def test_the_image_allows_both_texts(kind: ReferenceKind) -> None:
    for reference in draw(kind):
        looks = {(thing.color, thing.shape) for thing in reference.scene.objects}
        for words in (reference.words, reference.alternative):
            for color, shape in itertools.pairwise(words):
                if shape in SHAPES and color not in ("the", "a"):
                    assert (color, shape) in looks
            assert words[-1] in {shape for _, shape in looks}
        rendered = render(reference.scene)
        assert all(mask.any() for mask in rendered.masks)


def test_what_the_texts_say_is_true() -> None:
    for reference in draw("other"):
        left, right = reference.scene.objects
        assert left.x < right.x
        assert relation(reference.scene, 0, 1) == relation(reference.scene, 1, 0) == "beside"
    for reference in draw("same"):
        looks = {(thing.color, thing.shape) for thing in reference.scene.objects}
        assert len(looks) == 4 and len({color for color, _ in looks}) == 2


@pytest.mark.parametrize("kind", ["color", "repeat", "other"])
def test_models_of_captions_know_the_words(kind: ReferenceKind) -> None:
    assert {word for reference in draw(kind) for word in reference.words} <= set(CAPTION_WORDS)


def test_draws_repeat() -> None:
    assert sample_references(5, "same", seed=3) == sample_references(6, "same", seed=3)[:5]
    assert sample_references(2, "same", seed=3) != sample_references(2, "same", seed=4)
    assert sample_references(0, "color") == []


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="color, repeat, other, same"):
        sample_references(1, "pronoun")  # type: ignore[arg-type]
