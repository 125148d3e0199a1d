"""Splits that share no scene, and words tagged with what they speak of."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from captum_mllm import MLLM
from captum_mllm.datasets import BACKGROUND
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.evaluation.examples import Example, sample_examples


class LetterTokenizer:
    """A token for every two letters of a word, a full stop by itself."""

    unk_token_id = None

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        spans = [match.span() for match in re.finditer(r"\w\w?|[^\w\s]", text)]
        return {"offset_mapping": spans, "input_ids": list(range(len(spans)))}


class OneWordTokenizer(LetterTokenizer):
    """Knows the first word alone."""

    unk_token_id = 7

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return {"offset_mapping": spans, "input_ids": [0, *[7] * (len(spans) - 1)]}


def test_splits_and_the_evaluation_of_training_share_no_scene() -> None:
    development = {each.scene for each in sample_examples(range(20), "development")}
    test = {each.scene for each in sample_examples(range(20), "test")}
    evaluation = set(evaluation_scenes(20))
    assert len(development | test | evaluation) == 60


def test_an_example_depends_on_its_number_alone() -> None:
    together = sample_examples(range(4), "test", seed=3, prior=0.5)[2]
    (alone,) = sample_examples([2], "test", seed=3, prior=0.5)
    assert alone.scene == together.scene
    assert alone.caption == together.caption
    assert sample_examples([2], "test", seed=4, prior=0.5)[0].scene != alone.scene


@pytest.mark.parametrize(
    "wrong", [{"split": "training"}, {"style": "poem"}, {"spelling": "phonetic"}]
)
def test_what_is_unknown_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        sample_examples([0], **wrong)


def test_labels_are_the_objects(example: Example) -> None:
    for index, mask in enumerate(example.masks):
        assert torch.equal(example.labels == index, mask)
    assert torch.equal(example.labels == BACKGROUND, ~example.masks.any(0))


def test_words_are_tagged_with_their_objects(mllm: MLLM, example: Example) -> None:
    words = example.tagged_words(mllm.tokenizer)
    assert [word.tokens for word in words] == [(place,) for place in range(len(words))]
    tagged = list(zip(example.caption.words, example.caption.objects, words))
    for text, things, word in tagged:
        if text == "background":
            assert (word.kind, word.category) == ("noun", None)
        elif word.kind == "noun":
            assert (example.scene.objects[word.category].shape, (word.category,)) == (text, things)
    assert sum(word.category is not None for word in words) == 3
    kinds = {text: word.kind for text, _, word in tagged}
    assert kinds["a"] == "function"
    assert kinds["is"] == kinds["."] == "other"


def test_words_of_several_tokens_keep_them_together(example: Example) -> None:
    words = example.tagged_words(LetterTokenizer())
    assert [len(word.tokens) for word in words] == [
        (len(text) + 1) // 2 for text in example.caption.words
    ]
    every = [token for word in words for token in word.tokens]
    assert every == list(range(len(every)))


def test_natural_spelling_names_the_same_objects() -> None:
    plain, written = (
        sample_examples([3], objects=3, spelling=spelling)[0] for spelling in ("words", "natural")
    )
    assert written.answer[0].isupper()
    assert written.answer.endswith(".")
    assert " ." not in written.answer
    assert written.things == plain.things
    assert written.content_places == plain.content_places
    for example in (plain, written):
        spans = example.caption.spans
        assert [example.answer[start:end] for start, end in spans] == list(example.texts)
    nouns = [
        [word.category for word in example.tagged_words(LetterTokenizer())]
        for example in (plain, written)
    ]
    assert nouns[0] == nouns[1]


def test_a_word_that_the_model_does_not_know_is_refused(example: Example) -> None:
    with pytest.raises(ValueError, match=f"does not know the word {example.caption.words[1]!r}"):
        example.tagged_words(OneWordTokenizer())


def test_earlier_objects_are_those_of_the_words_before(example: Example) -> None:
    objects = example.caption.objects
    for place in range(len(objects)):
        expected = torch.zeros_like(example.masks[0])
        for things in objects[:place]:
            for thing in things:
                if thing != BACKGROUND:
                    expected |= example.masks[thing]
        assert torch.equal(example.earlier_objects(place), expected)
