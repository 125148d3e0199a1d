"""The states by which a model says its answer are those of a pass with the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import MaxTimeCriteria, StoppingCriteriaList

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query, States
from captum_mllm.models.vocabulary import Predictions
from tests.models.test_model_unchanged import snapshot, used
from tests.models.tiny_models import FAMILIES, build, shared

SIZES = {"wide": (84, 168), "tall": (140, 70)}
LONG = {"max_new_tokens": 8, "min_new_tokens": 8}
GREEDY: dict[str, Any] = {}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0}


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


def asked(size: tuple[int, int] = (84, 112)) -> ImageTextInput:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return ImageTextInput(image, "what is in the image ?")


@contextmanager
def counted(mllm: MLLM) -> Iterator[list[int]]:
    """Counts passes of the language model."""
    passes: list[int] = []
    handle = mllm.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


def said(mllm: MLLM, inp: ImageTextInput, **options: Any) -> tuple[States, int, Any, Query]:
    """The states after an answer of the model's own, and how many passes they took beyond it."""
    torch.manual_seed(0)
    with mllm.remember():
        image, query = mllm.prepare(inp, **options)
        with counted(mllm) as passes:
            states = mllm.states(image, query)
    return states, len(passes), image, query


def assert_equal(found: States, expected: States, mllm: MLLM) -> None:
    assert torch.equal(found.ids, expected.ids)
    assert found.layouts == expected.layouts
    for own, other in (
        (found.text, expected.text),
        (found.predicting, expected.predicting),
        *zip(found.image, expected.image),
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    predicted: list[Predictions] = [
        states.predictions(mllm.vocabulary, 5, with_text=True) for states in (found, expected)
    ]
    torch.testing.assert_close(predicted[0].probability, predicted[1].probability)
    torch.testing.assert_close(predicted[0].top_probability, predicted[1].top_probability)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_needs_no_pass_of_its_own(
    mllm: MLLM, options: dict[str, Any], size: tuple[int, int]
) -> None:
    states, passes, image, query = said(mllm, asked(size), **options, **LONG)
    assert passes == 0
    # A special token may come last.
    assert len(query.answer_ids) > 4
    assert_equal(states, mllm.states(image, query), mllm)


def test_the_token_that_ends_the_answer_is_not_part_of_it(mllm: MLLM) -> None:
    end = mllm.tokenizer.eos_token_id
    states, passes, image, query = said(mllm, asked(), forced_eos_token_id=end, **LONG)
    assert passes == 0
    assert len(query.answer_ids) == 7
    assert_equal(states, mllm.states(image, query), mllm)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}],
    ids=["beams", "no cache", "assisted"],
)
def test_what_is_not_said_token_by_token_takes_a_pass(mllm: MLLM, options: dict[str, Any]) -> None:
    states, passes, image, query = said(mllm, asked(), **options, **LONG)
    assert passes == 1
    assert_equal(states, mllm.states(image, query), mllm)


def test_every_image_of_a_prompt_may_be_open(mllm: MLLM) -> None:
    pictures = [torch.rand(3, 84, 84) for _ in range(2)]
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}]
    inp = ImageTextInput(pictures, messages=[{"role": "user", "content": parts}])
    with mllm.remember(), counted(mllm) as passes:
        images, query = mllm.prepare(inp, **LONG)
        states = mllm.states(*images, query)
    assert len(passes) == len(query.answer_ids)
    assert len(states.image) == 2
    assert_equal(states, mllm.states(*images, query), mllm)


def test_the_users_own_criteria_and_inference_mode_are_kept() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    criteria = StoppingCriteriaList([MaxTimeCriteria(0.0)])
    with torch.inference_mode():
        states, passes, image, query = said(mllm, asked(), stopping_criteria=criteria, **LONG)
        assert passes == 0
        assert len(query.answer_ids) == 1
        assert_equal(states, mllm.states(image, query), mllm)


def test_nothing_is_watched_where_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = MLLM(*shared("llava"))
    hooks: list[int] = []
    base = mllm.model.base_model
    register = base.register_forward_hook
    monkeypatch.setattr(
        base,
        "register_forward_hook",
        lambda hook, **options: hooks.append(1) or register(hook, **options),
    )
    mllm.prepare(asked(), max_new_tokens=2)
    assert not hooks
    with mllm.remember():
        mllm.prepare(asked(), max_new_tokens=2)
    assert hooks == [1]


@pytest.mark.parametrize("step", [1, 3])
def test_an_answer_that_breaks_off_leaves_the_model_as_it_was(step: int) -> None:
    mllm, _, _ = used("qwen2_vl")
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == step:
            raise RuntimeError("on purpose")

    handle = mllm.model.get_decoder().norm.register_forward_hook(fail)
    before = snapshot(mllm.model)
    with mllm.remember(), pytest.raises(RuntimeError, match="on purpose"):
        mllm.prepare(asked(), **LONG)
    assert snapshot(mllm.model) == before
    handle.remove()


def test_an_answer_leaves_the_model_as_it_was(mllm: MLLM) -> None:
    before = snapshot(mllm.model)
    said(mllm, asked(), **LONG)
    assert snapshot(mllm.model) == before


def test_changed_weights_make_another_pass() -> None:
    mllm = MLLM(*build("llava"))
    with mllm.remember(), torch.no_grad():
        image, query = mllm.prepare(asked(), **LONG)
        mllm.model.get_decoder().layers[0].mlp.up_proj.weight.normal_()
        with counted(mllm) as passes:
            mllm.states(image, query)
    assert passes == [1]
