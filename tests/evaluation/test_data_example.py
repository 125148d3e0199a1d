"""Words of an answer, tagged with the regions of a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from captum_mllm.datasets import Region, Sample
from captum_mllm.datasets.masks import BoxMask
from captum_mllm.evaluation.data_example import DataExample


class PieceTokenizer:
    """Tokens that are written between bars."""

    is_fast = False

    def __init__(self, text: str) -> None:
        self.pieces = text.split("|")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids)


def example(said: str, answer: str | None, *regions: tuple[str, int | None]) -> DataExample:
    tokenizer: Any = PieceTokenizer(said)
    image: Any = SimpleNamespace(height=4, width=6)
    boxes = [
        BoxMask(((float(place), 0.0, float(place + 1), 1.0),)) for place in range(len(regions))
    ]
    found = tuple(Region(text, box, start) for (text, start), box in zip(regions, boxes))
    sample = Sample("x", 3, "line 4", lambda: image, "What?", answer, regions=found)
    return DataExample(sample, "jsonl", tokenizer, range(len(tokenizer.pieces)))


def tagged(made: DataExample) -> list[tuple[str, str, tuple[int, ...]]]:
    words = made.tagged_words(None)
    return [(text, word.kind, word.tokens) for text, word in zip(made.texts, words, strict=True)]


def test_phrases_words_and_signs() -> None:
    made = example("A| red| st|ar| and| a| ring|.", "A red star and a ring.", ("red star", 2))
    assert tagged(made) == [
        ("A", "function", (0,)),
        ("red star", "noun", (1, 2, 3)),
        ("and", "function", (4,)),
        ("a", "function", (5,)),
        ("ring", "other", (6,)),
        (".", "other", (7,)),
    ]
    assert made.content_places == [1, 4]
    assert (made.id, made.number, made.answer) == ("x", 3, "A red star and a ring.")


def test_places_count_in_the_reference_answer_alone() -> None:
    regions = ("star", 8), ("ring", None), ("moon", None)
    reference = example(" A| star|,| a| star", "A star, a star", ("star", 10))
    assert tagged(reference)[-1] == ("star", "noun", (4,))
    own = example("The| ring| hides| a| star", "A red, star", *regions)
    assert tagged(own) == [
        ("The", "function", (0,)),
        ("ring", "noun", (1,)),
        ("hides", "other", (2,)),
        ("a", "function", (3,)),
        ("star", "noun", (4,)),
    ]
    assert own.things == ((), (1,), (), (), (0,))


def test_regions_of_words_and_of_those_before() -> None:
    made = example("star| ring|s", "star rings", ("star", 0), ("rings", 5))
    assert torch.equal(made.region(0).nonzero(), torch.tensor([[0, 0]]))
    assert torch.equal(made.earlier_objects(1), made.region(0))
    assert not made.earlier_objects(0).any()
    with pytest.raises(ValueError, match="no counterfactual images"):
        made.without(0)


def test_a_reference_within_other_words_is_not_said() -> None:
    made = example("I| do| not| know|.", "no", ("no", 0))
    assert all(word.kind != "noun" for word in made.tagged_words(None))
    made = example("I| say|:| no|.", "no", ("no", 0))
    assert ("no", "noun", (3,)) in tagged(made)
