"""The attended lens: a product of two methods from one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
)
from captum_mllm.attr import AttentionMaps
from captum_mllm.attr.attention_rows import AttentionRows
from captum_mllm.models.attention_record import IMPLEMENTATION
from captum_mllm.models.query import Query
from tests.attr.test_attention_maps import SIZES, matrices, noise, places, prepared, sharp
from tests.models.test_decoding import counted
from tests.models.tiny_models import FAMILIES, shared


def of_word(mllm: MLLM, image: Tensor, query: Query, t: int, power: float) -> Tensor:
    """Word t's map, token by token, from attention matrices and hidden states written out."""
    tokens, rows = places(mllm, query)
    layers = matrices(mllm, image, query, t, "raw", "mean", vision=False)
    attended = [
        len(tokens) * sum(float(layer[rows[t], place]) for layer in layers) / len(layers)
        for place in tokens
    ]
    word = mllm.model.get_output_embeddings().weight[query.answer_ids[t]].detach()
    logits = [float(word @ state) for state in mllm.states(image, query).image[0][0]]
    layout = mllm.layouts(image, query)[0]
    says, looks = (layout.paint(torch.tensor(each).double()) for each in (logits, attended))
    return says.clamp(min=0) * looks**power


@pytest.mark.parametrize("power", [0.75, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_equal_the_definition_written_out(family: str, power: float) -> None:
    mllm = sharp(family)
    image, query = prepared(mllm, SIZES[family])
    lens = AttendedLens(mllm, power)
    found = lens.attribute(image, additional_forward_args=(query,))
    for t, token in enumerate(query.answer_ids):
        expected = of_word(mllm, image, query, t, power)
        torch.testing.assert_close(found[t, 0].double(), expected, rtol=1e-5, atol=1e-7)
        single = lens.attribute(image, target=(t, token), additional_forward_args=(query,))
        torch.testing.assert_close(single, found[t : t + 1])
    assert (found.flatten(1).amax(1) > 0).any()


def test_power_0_is_the_positive_part_of_the_lens() -> None:
    mllm = sharp("qwen2_vl")
    image, query = prepared(mllm, SIZES["qwen2_vl"])
    call = {"additional_forward_args": (query,)}
    lens = LogitLens(mllm).attribute(image, **call)
    torch.testing.assert_close(AttendedLens(mllm, 0).attribute(image, **call), lens.relu())


def test_a_word_said_twice_has_two_maps() -> None:
    mllm = sharp("llava")
    image, query = prepared(mllm, SIZES["llava"], [5, 6, 5])
    call = {"additional_forward_args": (query,)}
    lens = LogitLens(mllm).attribute(image, **call)
    torch.testing.assert_close(lens[0], lens[2])
    maps = AttendedLens(mllm).attribute(image, **call)
    assert not torch.allclose(maps[0], maps[2])


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_a_scale_takes_one_pass(scales: tuple[float, ...]) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    passes: list[int] = []
    handle = mllm.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    try:
        result = MLLMAttribution(ARC(MSEA(AttendedLens(mllm)))).attribute(
            ImageTextInput(noise((140, 196)), "what is it ?"), target="a cat", scales=scales
        )
    finally:
        handle.remove()
    assert len(passes) == len(scales)
    assert [scale.scale for scale in result.scales] == list(scales)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_its_pass_are_those_of_a_pass(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    expected = mllm.states(image, query)
    with mllm.remember():
        AttendedLens(mllm).attribute(image, additional_forward_args=(query,))
        found = mllm.states(image, query)
    assert torch.equal(found.image[0], expected.image[0])
    assert torch.equal(found.context, expected.context)


@contextmanager
def looking_nowhere(mllm: MLLM) -> Iterator[None]:
    """Attention of a user's own, which is no softmax."""

    def look(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    AttentionInterface.register("looks_nowhere", look)
    AttentionMaskInterface.register("looks_nowhere", AttentionMaskInterface()["sdpa"])
    mllm.model.set_attn_implementation("looks_nowhere")
    try:
        yield
    finally:
        mllm.model.set_attn_implementation("sdpa")


def test_attention_of_another_kind_leaves_no_states() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, SIZES["llava"])
    with looking_nowhere(mllm):
        expected = mllm.states(image, query)
        with mllm.remember():
            AttendedLens(mllm).attribute(image, additional_forward_args=(query,))
            assert torch.equal(mllm.states(image, query).context, expected.context)


def test_what_is_remembered_is_not_taken_for_other_rows() -> None:
    mllm = sharp("qwen2_vl")
    image, query = prepared(mllm, SIZES["qwen2_vl"])
    lenses = [
        AttendedLens(mllm),
        AttendedLens(mllm, power=2.0),
        AttendedLens(mllm, layers=[0]),
        AttentionMaps(mllm, "raw"),
        AttentionMaps(mllm, "raw", layers=[1]),
        AttentionMaps(mllm, "raw", head_fusion="max"),
        AttentionMaps(mllm, "raw", relative=True),
    ]
    calls = [{"additional_forward_args": (each,)} for each in (query, query.including_prompt())]
    expected = [lens.attribute(image, **call) for lens in lenses for call in calls]
    with mllm.remember(), counted(mllm) as passes:
        found = [lens.attribute(image, **call) for lens in lenses for call in calls]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)
    # All layers, each of two, and another fusion of the heads; with the prompt and without.
    assert len(passes) == 2 * 4


def test_pixels_are_not_kept_with_the_rows() -> None:
    mllm = sharp("llava")
    image, query = prepared(mllm, SIZES["llava"])
    with mllm.remember():
        AttendedLens(mllm).attribute(image, additional_forward_args=(query,))
        (rows,) = (
            value
            for value in mllm.states(image, query).derived.values()
            if isinstance(value, AttentionRows)
        )
    assert list(rows.encoding.inputs) == ["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    before = mllm(image, query)
    seen = []

    def fail(*_: Any) -> None:
        seen.append(mllm.model.config._attn_implementation)
        raise KeyError("within a layer")

    handle = mllm.model.get_decoder().layers[1].register_forward_hook(fail)
    try:
        with pytest.raises(KeyError, match="within a layer"):
            AttendedLens(mllm).attribute(image, additional_forward_args=(query,))
    finally:
        handle.remove()
    assert seen == [IMPLEMENTATION]
    assert mllm.model.config._attn_implementation == "sdpa"
    assert not mllm.remembers
    assert torch.equal(mllm(image, query), before)


@pytest.mark.parametrize("wrapper", [MSEA, TAM, ARC, lambda lens: ARC(MSEA(lens), suppress=None)])
def test_it_is_the_base_of_every_wrapper(wrapper: Any) -> None:
    mllm = MLLM(*shared("internvl"))
    inp = ImageTextInput(noise((56, 112)), "what is it ?")
    result = MLLMAttribution(wrapper(AttendedLens(mllm))).attribute(
        inp, target=[5, 6, 7], include_prompt=True
    )
    maps = result.image_attr
    assert len(maps) == result.n_prompt + 3
    assert maps.isfinite().all() and (maps >= 0).all() and (maps > 0).any()


def test_several_open_images_have_a_map_each() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    images = [noise((84, 84), 1), noise((84, 140), 2)]
    opened, query = mllm.prepare(ImageTextInput(images, "what differs ?"), target="a cat")
    maps = AttendedLens(mllm).attribute(opened, additional_forward_args=(query,))
    assert isinstance(maps, tuple)
    for index, found in enumerate(maps):
        image, alone = mllm.prepare(
            ImageTextInput(images, "what differs ?", explained=index), target="a cat"
        )
        expected = AttendedLens(mllm).attribute(image, additional_forward_args=(alone,))
        torch.testing.assert_close(found, expected)


def test_half_precision_gives_float32_maps_near_those_of_full_precision() -> None:
    full = sharp("qwen3_vl")
    image, query = prepared(full, SIZES["qwen3_vl"])
    expected = AttendedLens(full).attribute(image, additional_forward_args=(query,))
    half = MLLM(full.model.bfloat16(), full.processor)
    found = AttendedLens(half).attribute(image, additional_forward_args=(query,))
    assert found.dtype == torch.float32
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert error < 0.1


@pytest.mark.parametrize("power", [None, True, "1"])
def test_a_power_that_is_no_number_is_refused(power: Any) -> None:
    with pytest.raises(TypeError, match="expected a number"):
        AttendedLens(MLLM(*shared("llava")), power=power)


@pytest.mark.parametrize("power", [-0.5, float("nan"), float("inf")])
def test_a_power_that_is_none_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \[0, inf\)"):
        AttendedLens(MLLM(*shared("llava")), power=power)


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="of the language model"):
        AttendedLens(MLLM(*shared("llava")), layers=[7])


def test_text_weights_are_attention_and_the_token_directly_before() -> None:
    mllm = MLLM(*shared("llava"))
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is in the image ?")
    image, query = mllm.prepare(inp, target="a cat on a dog")
    attention = AttentionMaps(mllm, mode="raw").attribute_text(image, query)
    found = AttendedLens(mllm, text_residual=0.5).attribute_text(image, query)
    residual = found - attention
    count = len(query.answer_ids)
    places = torch.arange(count) + attention.shape[1] - count - 1
    # Between the question and the answer are tokens of the template, which are not the user's.
    expected = 0.5 * torch.nn.functional.one_hot(places, attention.shape[1])
    torch.testing.assert_close(residual[1:], expected[1:].to(residual), atol=1e-6, rtol=0)
    assert not residual[0].any()
    with mllm.remember():
        whole = AttendedLens(mllm).attribute_text(image, query.including_prompt())
        torch.testing.assert_close(AttendedLens(mllm).attribute_text(image, query), whole[-count:])
