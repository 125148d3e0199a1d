"""Contrasts: the difference of two logits, in every method, and the lens's form of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    AttendedLens,
    ImageTextInput,
    LogitDecomposition,
    LogitLens,
    MLLMAttribution,
    TokenCam,
)
from captum_mllm.attr import AttentionMaps
from captum_mllm.models.query import Query
from tests.attr.test_attention_maps import noise, prepared
from tests.models.test_mllm import random_image
from tests.models.tiny_models import shared

SIZE = (84, 84)
OTHER = 9
LINEAR: dict[str, Callable[[MLLM], Any]] = {
    "InputXGradient": InputXGradient,
    "IntegratedGradients": lambda mllm: IntegratedGradients(mllm),
    "LogitDecomposition": LogitDecomposition,
}


@pytest.fixture
def mllm() -> MLLM:
    return MLLM(*shared("llava"))


def asked(mllm: MLLM) -> tuple[Tensor, Query, int, int]:
    """An image, a query, a step of the answer and its token."""
    image, query = prepared(mllm, SIZE)
    return image, query, 1, query.answer_ids[1]


def test_logits_are_less_by_that_of_the_other_word_where_it_is_contrasted(mllm: MLLM) -> None:
    image, query, t, _ = asked(mllm)
    plain, found = mllm(image, query), mllm(image, mllm.contrast(query, t, OTHER))
    expected = plain.clone()
    expected[:, t] -= plain[:, t, OTHER : OTHER + 1]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.softmax(-1), plain.softmax(-1))
    both = mllm.contrast(query, t, OTHER).including_prompt()
    with_prompt = mllm(image, both)
    torch.testing.assert_close(with_prompt[:, -len(query.answer_ids) :], expected)
    ids = mllm.explained_ids(image, query)
    own = mllm.token_logits(image, mllm.contrast(query, t, OTHER))
    torch.testing.assert_close(own[0], expected[0, torch.arange(len(ids)), ids])


@pytest.mark.parametrize("name", LINEAR)
def test_linear_methods_give_the_difference_of_two_maps(name: str, mllm: MLLM) -> None:
    image, query, t, token = asked(mllm)
    method = LINEAR[name](mllm)
    call = {"additional_forward_args": (query,)}
    first, second = (method.attribute(image, target=(t, word), **call) for word in (token, OTHER))
    contrasted = {"additional_forward_args": (mllm.contrast(query, t, OTHER),)}
    found = method.attribute(image, target=(t, token), **contrasted)
    torch.testing.assert_close(found, first - second, rtol=1e-3, atol=1e-6)
    for wrapped in (MSEA(method, scales=(1.0,)), MSEA(method, scales=(0.5, 1.0))):
        maps = wrapped.attribute(image, target=(t, token, OTHER), **call)
        expected = wrapped.attribute(image, target=(t, token), **contrasted)
        torch.testing.assert_close(maps, expected)
        assert not torch.allclose(maps, wrapped.attribute(image, target=(t, token), **call))


def test_the_lens_takes_off_the_other_word_and_what_the_whole_image_says(mllm: MLLM) -> None:
    image, query, t, token = asked(mllm)
    call = {"additional_forward_args": (query,)}
    words = mllm.model.get_output_embeddings().weight.detach()
    states = mllm.states(image, query).image[0][0]
    others = [float(words[OTHER] @ state) for state in states]
    assert min(others) < 0 < max(others)
    lens, means = LogitLens(mllm), []
    for word in (token, *range(OTHER + 1, OTHER + 10)):
        says = [float(words[word] @ state) for state in states]
        means.append(sum(says) / len(says))
        level = max(means[-1], 0.0) / 2
        expected = [own - max(0.0, other) / 2 - level for own, other in zip(says, others)]
        maps = lens.attribute(image, target=(t, word, OTHER), **call)
        torch.testing.assert_close(maps.flatten(), torch.tensor(expected), atol=1e-6, rtol=1e-4)
    assert min(means) < 0 < max(means)
    found = lens.attribute(image, target=(t, token, OTHER), **call)
    every = lens.attribute(image, additional_forward_args=(mllm.contrast(query, t, OTHER),))
    torch.testing.assert_close(every[t], found[0])
    plain = lens.attribute(image, **call)
    torch.testing.assert_close(every[[0, 2]], plain[[0, 2]])
    attended = AttendedLens(mllm).attribute(image, target=(t, token, OTHER), **call)
    looks = AttentionMaps(mllm, "raw", relative=True).attribute(image, target=(t, token), **call)
    torch.testing.assert_close(attended, found.relu() * looks**0.75)


def test_parts_of_a_contrast_sum_to_the_difference(mllm: MLLM) -> None:
    image, query, t, token = asked(mllm)
    call = {"additional_forward_args": (query,)}
    parts = LogitDecomposition(mllm).decompose(image, target=(t, token, OTHER), **call)
    logits = mllm(image, query)[0, t].detach()
    expected = (logits[token] - logits[OTHER])[None]
    torch.testing.assert_close(parts.logit, expected)
    torch.testing.assert_close(parts.total(), expected)


@pytest.mark.parametrize(
    "make",
    [LogitLens, AttendedLens, LogitDecomposition, Saliency, TokenCam],
)
def test_words_are_contrasted_within_msea_and_arc(mllm: MLLM, make: Any) -> None:
    inp = ImageTextInput(noise(SIZE), "what is it ?")
    explainer = MLLMAttribution(ARC(MSEA(make(mllm), scales=(1.0,))))
    plain = explainer.attribute(inp, target="a cat sits")
    found = explainer.attribute(inp, target="a cat sits", contrast={"cat": "dog"})
    assert "why 'cat' and not 'dog'" in found.method
    torch.testing.assert_close(found.image_attr[0], plain.image_attr[0])
    assert not torch.allclose(found.image_attr[1], plain.image_attr[1])
    torch.testing.assert_close(found.output_probs, plain.output_probs)


def test_segments_are_removed_for_a_contrast(mllm: MLLM) -> None:
    inp = ImageTextInput(random_image(84, 84), "what ?")
    explainer = MLLMAttribution(FeatureAblation(mllm))
    options: dict[str, Any] = {"segments": (2, 2), "target": "cat"}
    # A word of several tokens, of which the first is another one.
    first, _ = mllm.tokenizer("dog", add_special_tokens=False)["input_ids"]
    found = explainer.attribute(inp, contrast="dog", **options)
    assert found.method.endswith("why 'cat' and not 'dog' (by 'cat' and not 'd')")
    cat = explainer.attribute(inp, **options).image_attr
    other = explainer.attribute(inp, **{**options, "target": [first]}).image_attr
    torch.testing.assert_close(found.image_attr, cat - other, rtol=1e-3, atol=1e-6)


def test_contrasts_that_say_nothing_are_refused(mllm: MLLM) -> None:
    image, query, t, token = asked(mllm)
    call = {"additional_forward_args": (query,)}
    size = mllm.vocabulary.size
    with pytest.raises(ValueError, match=f"one of the vocabulary, 0 to {size - 1}"):
        mllm.contrast(query, t, size)
    with pytest.raises(ValueError, match="contrast with itself"):
        mllm.contrast(query, t, token)
    with pytest.raises(ValueError, match="one of the 4 explained tokens"):
        mllm.contrast(query, 4, OTHER)
    with pytest.raises(TypeError, match="integers"):
        mllm.contrast(query, t, True)
    with pytest.raises(ValueError, match="in contrast to itself"):
        LogitLens(mllm).attribute(image, target=(t, OTHER, OTHER), **call)
    with pytest.raises(ValueError, match="does not depend on the word"):
        AttentionMaps(mllm).attribute(image, target=(t, token, OTHER), **call)
    inp = ImageTextInput(noise(SIZE), "what is it ?")
    explainer = MLLMAttribution(LogitLens(mllm))
    for contrast, error in (
        ("dog", "answer of 3 words"),
        ({"cat": "cat"}, "'cat' with itself"),
        ({"bird": "dog"}, "no word or phrase 'bird'"),
    ):
        with pytest.raises(ValueError, match=error):
            explainer.attribute(inp, target="a cat sits", contrast=contrast)
    with pytest.raises(TypeError, match="expected a word"):
        explainer.attribute(inp, target="a cat sits", contrast={"cat": 3})


def test_words_that_the_tokenizer_does_not_know_are_no_contrast() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(noise((56, 56)), "Describe the image.")
    explain = MLLMAttribution(LogitLens(mllm)).attribute
    with pytest.raises(ValueError, match="'bus' in contrast to 'red', which this model does not"):
        explain(inp, target="a red star", contrast={"red": "bus"})
    with pytest.raises(ValueError, match="'bus' for removed words is not known"):
        MLLMAttribution(FeatureAblation(mllm)).attribute(
            inp, target="a", segments=(1, 1), baselines=("mean", "bus")
        )
