"""Prompts in one batch have the states that they have alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query, States
from captum_mllm.models.batches import batch_states, join, lengths
from captum_mllm.models.decoding import answer_prompts
from tests.models.tiny_models import FAMILIES, shared

SIZES = [(84, 112), (56, 56), (168, 84)]
QUESTIONS = ["what ?", "what is in the image ?", "yes"]
ANSWERS = ["a cat and a dog", "two", "one two three"]


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


def prompts(mllm: MLLM) -> list[tuple[tuple[Tensor, ...], Query]]:
    random = torch.Generator().manual_seed(0)
    found = []
    for size, question, answer in zip(SIZES, QUESTIONS, ANSWERS):
        inp = ImageTextInput(torch.rand(3, *size, generator=random), question)
        image, query = mllm.prepare(inp, target=answer)
        found.append(((image,), query))
    return found


def larger(image: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(image, scale_factor=2, mode="nearest")


def assert_close(found: States, expected: States) -> None:
    assert torch.equal(found.ids, expected.ids)
    assert found.layouts == expected.layouts
    for name in ("text", "predicting"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)
    for own, other in zip(found.image, expected.image, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("layer", [None, 0])
def test_states_are_those_of_single_passes(mllm: MLLM, layer: int | None, scale: int) -> None:
    given = prompts(mllm)
    if scale == 2:
        # Some families see a larger image through several windows or tiles.
        given = [((larger(image),), query) for (image,), query in given]
    passes: list[int] = []
    handle = mllm.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    found = batch_states(mllm.backbone, given, layer)
    handle.remove()
    assert len(passes) == 1
    for states, (images, query) in zip(found, given, strict=True):
        assert set(states) == {None, layer}
        for place in states:
            assert_close(states[place], mllm.states(*images, query, layer=place))


def test_answers_and_their_states_are_those_of_single_prompts(mllm: MLLM) -> None:
    given = [(images, replace(query, answer_ids=())) for images, query in prompts(mllm)]
    options: dict[str, Any] = {"max_new_tokens": 6, "logits_processor": [EndEarly(mllm, 3)]}
    with mllm.remember():
        answers = answer_prompts(mllm.backbone, given, options)
        for (images, query), answer in zip(given, answers, strict=True):
            as_long = {"max_new_tokens": 6, "min_new_tokens": 6}
            alone = answer_prompts(mllm.backbone, [(images, query)], as_long)[0]
            assert alone[: len(answer)] == answer
            full = replace(query, answer_ids=answer)
            assert mllm.knows(*images, full)
            kept = mllm.states(*images, full)
            assert_close(kept, batch_states(mllm.backbone, [(images, full)])[0][None])
    assert len(answers[0]) == 3
    assert max(map(len, answers)) == 6


class EndEarly:
    """Ends the first answer of a batch after some tokens."""

    def __init__(self, mllm: MLLM, count: int) -> None:
        self.end = mllm.tokenizer.eos_token_id
        self.count = count
        self.start: int | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.start = ids.shape[1] if self.start is None else self.start
        # The others go on.
        scores[:, self.end] = -torch.inf
        if ids.shape[1] == self.start + self.count:
            scores[0] = -torch.inf
            scores[0, self.end] = 0.0
        return scores


def test_padding_is_out_of_sight(mllm: MLLM) -> None:
    encodings = [mllm.encode(images, query) for images, query in prompts(mllm)]
    longest = max(lengths(encodings))
    left, right = (join(encodings, mllm.tokenizer, side) for side in ("left", "right"))
    for row, length in enumerate(lengths(encodings)):
        own = encodings[row].inputs["input_ids"][0]
        assert torch.equal(left["input_ids"][row, longest - length :], own)
        assert torch.equal(right["input_ids"][row, :length], own)
        assert left["attention_mask"][row].tolist() == [0] * (longest - length) + [1] * length
    assert right["attention_mask"].all()


def test_images_that_do_not_fit_together_are_refused() -> None:
    mllm = MLLM(*shared("llava"))
    encodings = [mllm.encode(images, query) for images, query in prompts(mllm)[:2]]
    encodings[1].inputs["pixel_values"] = encodings[1].inputs["pixel_values"][..., :42]
    with pytest.raises(ValueError, match="do not go into one batch"):
        join(encodings, mllm.tokenizer, "right")
