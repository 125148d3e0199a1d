"""A pass is made once within `remember`, but never taken for another one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from tests.models.tiny_models import build

IMAGES = [torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(i)) for i in range(2)]
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}],
    }
]
Counted = tuple[MLLM, Tensor, Query, list[int]]


@pytest.fixture
def counted() -> Iterator[Counted]:
    mllm = MLLM(*build("qwen2_vl"))
    image, query = mllm.prepare(
        ImageTextInput(IMAGES, messages=MESSAGES, explained=0), target="a cat"
    )
    passes: list[int] = []
    handle = mllm.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    yield mllm, image, query, passes
    handle.remove()


def test_an_equal_pass_is_made_once(counted: Counted) -> None:
    mllm, image, query, passes = counted
    with mllm.remember():
        first = mllm.states(image, query)
        assert mllm.states(image, query.including_prompt()) is first
        mllm.target_probability(image, query)
    assert len(passes) == 1
    assert mllm.states(image, query) is not first


def test_what_was_derived_is_kept_with_the_states(counted: Counted) -> None:
    mllm, image, query, _ = counted
    with mllm.remember():
        states = mllm.states(image, query)
        assert states.derived == {}
        states.derived["rankings", 5] = mllm.vocabulary.rankings(states.image[0][0], 5)
        assert ("rankings", 5) in mllm.states(image, query).derived
    assert mllm.states(image, query).derived == {}


@pytest.mark.parametrize("changed", ["image", "fixed image", "weight", "layer", "answer"])
def test_what_differs_in_anything_is_another_pass(counted: Counted, changed: str) -> None:
    mllm, image, query, passes = counted
    arguments: dict[str, Any] = {}
    with mllm.remember():
        first = mllm.states(image, query)
        if changed == "image":
            image.mul_(0.5)
        elif changed == "fixed image":
            assert query.images[1] is not None
            query.images[1].mul_(0.5)
        elif changed == "weight":
            with torch.no_grad():
                mllm.model.get_decoder().layers[0].mlp.up_proj.weight.normal_()
        elif changed == "layer":
            arguments["layer"] = 0
        else:
            messages = ImageTextInput(IMAGES, messages=MESSAGES, explained=0)
            query = mllm.prepare(messages, target="the cat")[1]
        second = mllm.states(image, query, **arguments)
    assert len(passes) == 2
    assert not torch.equal(first.predicting, second.predicting)


def test_images_that_are_gone_leave_no_identity_behind(counted: Counted) -> None:
    mllm, image, query, passes = counted
    with mllm.remember():
        for level in range(20):
            mllm.states(torch.full_like(image, level / 20), query)
    assert len(passes) == 20


def test_prepared_images_are_the_callers_own(counted: Counted) -> None:
    mllm = counted[0]
    inp = ImageTextInput(IMAGES, messages=MESSAGES, explained=0)
    image, query = mllm.prepare(inp, target="a cat")
    image.zero_()
    assert query.images[1] is not None
    query.images[1].zero_()
    for picture, own in zip(IMAGES, inp.images):
        assert torch.equal(picture, own)


def test_gradients_in_inference_mode_are_refused_with_advice(counted: Counted) -> None:
    mllm, image, query, _ = counted
    method = Saliency(mllm)
    arguments = {"target": (0, 5), "additional_forward_args": (query,)}
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"gradients cannot be had within torch.inference_mode"),
    ):
        method.attribute(image.clone().requires_grad_(), **arguments)
    with torch.inference_mode():
        assert mllm(image, query).isfinite().all()
        later, question = mllm.prepare(
            ImageTextInput(IMAGES, messages=MESSAGES, explained=0), target="a cat"
        )
    arguments["additional_forward_args"] = (question,)
    assert method.attribute(later, **arguments).abs().sum() > 0


def test_a_pass_kept_by_value_is_that_of_equal_images_until_its_own_changes(
    counted: Counted,
) -> None:
    mllm, image, query, _ = counted
    with mllm.remember():
        states = mllm.states(image.clone(), query)
        mllm.keep(states, image, query, by_value=True)
        assert mllm.recall(image, query) is states
        assert mllm.recall(image.clone(), query) is states
        assert mllm.recall(1 - image, query) is None
        image.mul_(0.5)
        assert mllm.recall(image, query) is None
        assert mllm.recall(image.clone(), query) is None
