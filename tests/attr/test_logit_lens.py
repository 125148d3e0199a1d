"""The logit lens: what it reads, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_mllm import MLLM, AttendedLens, ImageTextInput, LogitLens
from tests.models.test_mllm import random_image
from tests.models.tiny_models import FAMILIES, build, shared


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_default(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = mllm.prepare(ImageTextInput(random_image(), "what ?"), target="a cat")
    call = {"additional_forward_args": (query,)}
    default = LogitLens(mllm).attribute(image, **call)
    torch.testing.assert_close(LogitLens(mllm, layer=-1).attribute(image, **call), default)
    assert not torch.allclose(LogitLens(mllm, layer=0).attribute(image, **call), default)


@pytest.mark.parametrize("method", [LogitLens, AttendedLens])
def test_a_centered_lens_does_not_see_what_a_softmax_does_not_see(
    method: type[LogitLens] | type[AttendedLens],
) -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model, processor)
    image, query = mllm.prepare(ImageTextInput(random_image(), "what ?"), target="a cat")
    call = {"additional_forward_args": (query,)}
    plain, centered = (
        method(mllm, centered=flag).attribute(image, **call) for flag in (False, True)
    )
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows += torch.randn(1, rows.shape[1])
    shifted_plain, shifted = (
        method(mllm, centered=flag).attribute(image, **call) for flag in (False, True)
    )
    torch.testing.assert_close(shifted, centered, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(shifted_plain, plain, rtol=1e-2, atol=1e-2)


def test_a_centered_lens_is_the_lens_less_the_mean_logit() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(ImageTextInput(random_image(84, 84), "what ?"), target="a cat")
    states = mllm.states(image, query)
    logits = mllm.model.get_output_embeddings()(states.image[0][0]).double()
    expected = (logits - logits.mean(-1, keepdim=True))[:, query.answer_ids]
    found = LogitLens(mllm, centered=True).attribute(image, additional_forward_args=(query,))
    torch.testing.assert_close(found.flatten(1).double(), expected.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [7, 2, -3])
def test_a_layer_that_the_model_lacks_is_refused_at_once(layer: int) -> None:
    with pytest.raises(ValueError, match=r"indices of the 2 layers of the language model"):
        LogitLens(MLLM(*shared("llava")), layer=layer)


def test_a_layer_may_be_an_integer_of_numpy() -> None:
    assert LogitLens(MLLM(*shared("llava")), layer=np.int64(-1)).layer == -1  # type: ignore[arg-type]


@pytest.mark.parametrize("centered", [1, "mean", None])
def test_centered_is_a_truth_value(centered: Any) -> None:
    with pytest.raises(TypeError, match="expected True or False"):
        LogitLens(MLLM(*shared("llava")), centered=centered)


@pytest.mark.parametrize("layer", [1.5, "last", True])
def test_a_layer_that_is_no_index_is_refused(layer: Any) -> None:
    with pytest.raises(TypeError, match="expected the index of a layer"):
        LogitLens(MLLM(*shared("llava")), layer=layer)


def test_bad_targets_and_images_are_refused() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(
        ImageTextInput(random_image(84, 84), "what is this ?"), target="a cat"
    )
    lens, size = LogitLens(mllm), mllm.vocabulary.size
    # The words of the prompt are not explained, so there is no third token.
    for target in [
        (2, 5),
        (-3, 5),
        (0, size),
        (0, -1),
        (0, 3.5),
        (True, 5),
        1,
        (0,),
        [],
        [(0, 5)] * 2,
    ]:
        with pytest.raises(ValueError, match=r"expected \(t, token_id\)"):
            lens.attribute(image, target=target, additional_forward_args=(query,))
    both = query.including_prompt()
    assert lens.attribute(image, (2, 5), (both,)).shape[0] == 1
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        lens.attribute(image * 255, additional_forward_args=(query,))
    with pytest.raises(ValueError, match="no target; give a target for each"):
        lens.attribute(image.repeat(2, 1, 1, 1), additional_forward_args=(query,))
