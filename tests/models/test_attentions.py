from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import attention_record, attentions
from captum_mllm.models.attention_record import record_attention
from captum_mllm.models.attentions import Attention
from captum_mllm.models.towers import decoder_layers, vision_layers
from tests.models.tiny_models import FAMILIES, build, shared

BATCH, HEADS, SHARED, LENGTH, CHANNELS = 2, 4, 2, 7, 3


def attention(kind: str, softcap: float | None = None) -> Attention:
    generator = torch.Generator().manual_seed(0)

    def states(heads: int, channels: int = CHANNELS) -> Tensor:
        shape = (BATCH, heads, LENGTH, channels)
        return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    mask = None
    if kind != "causal":
        mask = torch.rand((BATCH, 1, LENGTH, LENGTH), generator=generator) < 0.5
        mask |= torch.eye(LENGTH, dtype=torch.bool)
    if kind == "added":
        mask = torch.where(mask, 0.0, -torch.inf).double()
    return Attention(
        states(HEADS), states(SHARED), states(SHARED, 5), mask, kind == "causal", 0.7, softcap
    )


def one_weight(call: Attention, batch: int, head: int, row: int, column: int) -> float:
    """A weight by the definition of attention, one number at a time."""
    key_head = head // (HEADS // SHARED)

    def score(other: int) -> float:
        product = sum(
            float(call.query[batch, head, row, channel] * call.key[batch, key_head, other, channel])
            for channel in range(CHANNELS)
        )
        product *= call.scaling
        return call.softcap * math.tanh(product / call.softcap) if call.softcap else product

    def allowed(other: int) -> bool:
        if call.mask is None:
            return other <= row or not call.causal
        entry = call.mask[batch, 0, row, other]
        return bool(entry) if call.mask.dtype == torch.bool else bool(entry == 0)

    if not allowed(column):
        return 0.0
    total = sum(math.exp(score(other)) for other in range(LENGTH) if allowed(other))
    return math.exp(score(column)) / total


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kind", ["causal", "boolean", "added"])
def test_weights_follow_the_definition(kind: str, softcap: float | None) -> None:
    call = attention(kind, softcap)
    rows = torch.tensor([5, 0, 3])
    found = call.weights(rows)
    expected = [
        one_weight(call, batch, head, row, column)
        for batch in range(BATCH)
        for head in range(HEADS)
        for row in rows.tolist()
        for column in range(LENGTH)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype).view_as(found))
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


def test_weights_without_mask_or_order_reach_everything() -> None:
    call = replace(attention("causal"), causal=False)
    found = call.weights(torch.arange(LENGTH))
    assert (found > 0).all()
    assert found[0, 0, 1, 4] == pytest.approx(one_weight(call, 0, 0, 1, 4))


def test_weights_of_half_precision_are_float32() -> None:
    call = attention("causal")
    half = replace(call, query=call.query.bfloat16(), key=call.key.bfloat16())
    found = half.weights(torch.arange(LENGTH))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))


def test_a_row_that_may_look_nowhere_is_finite() -> None:
    call = replace(attention("boolean"), mask=torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.bool))
    assert torch.isfinite(call.weights(torch.arange(LENGTH))).all()


@pytest.mark.parametrize("kind", ["causal", "boolean", "added"])
def test_gradients_of_weights_are_those_of_autograd(kind: str) -> None:
    call = attention(kind)
    weights = call.weights(torch.arange(LENGTH)).requires_grad_()
    value = call.value.repeat_interleave(HEADS // SHARED, 1)
    output = (weights @ value).transpose(1, 2)
    torch.testing.assert_close(output, call.output())
    slope = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype
    )
    (expected,) = torch.autograd.grad(output, weights, slope)
    rows = torch.tensor([6, 2])
    torch.testing.assert_close(call.gradients(rows, slope), expected[:, :, rows])


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_passing_down_is_a_matrix_product(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentions, "CHUNK", chunk)
    call = attention("causal")
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand((3, BATCH, LENGTH), generator=generator, dtype=torch.float64)
    weights[..., 2] = 0
    matrix = call.weights(torch.arange(LENGTH)).mean(1)
    expected = torch.stack([row[:, None] @ matrix for row in weights])[:, :, 0]
    found = call.pass_down(weights, lambda heads: heads.mean(1))
    torch.testing.assert_close(found, expected)
    assert (call.pass_down(torch.zeros_like(weights), lambda heads: heads.mean(1)) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_rows_sum_to_one_and_nothing_kept_is_square(family: str) -> None:
    mllm = MLLM(*shared(family))
    picture = torch.rand(3, 112, 140, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    layers = [*vision_layers(mllm.model), *decoder_layers(mllm.model)]
    with torch.no_grad():
        expected = mllm(image, query)
        with record_attention(mllm.model, layers) as record:
            found = mllm(image, query)
    torch.testing.assert_close(found, expected)
    assert len(record.calls) == len(layers)
    for calls in record.calls:
        for call in calls:
            weights = call.weights(torch.arange(call.query.shape[2]))
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert call.mask is None


def test_soft_capped_attention_is_what_the_model_gets() -> None:
    call = attention("causal", softcap=2.0)
    model = build("llava")[0]
    module = model.get_decoder().layers[0].self_attn
    states = (call.query, call.key, call.value, None)
    with record_attention(model, [module]):
        found, _ = attention_record._attend(module, *states, scaling=0.7, softcap=2.0)
        uncapped, _ = attention_record._attend(module, *states, scaling=0.7)
    torch.testing.assert_close(found, call.output())
    assert not torch.allclose(found, uncapped)


@pytest.mark.parametrize("name", ["position_bias", "s_aux"])
def test_attention_that_the_record_does_not_know_is_refused(name: str) -> None:
    call = attention("causal")
    with pytest.raises(NotImplementedError, match=name):
        attention_record._attend(
            torch.nn.Identity(),
            call.query,
            call.key,
            call.value,
            None,
            **{name: torch.zeros(1)},  # type: ignore[arg-type]
        )


def test_layers_without_attention_are_refused() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    image, query = mllm.prepare(ImageTextInput(torch.rand(3, 56, 56), "what ?"), target="a cat")
    with (
        pytest.raises(RuntimeError, match="1 of 1 layers made no attention weights"),
        record_attention(mllm.model, [mllm.model.get_decoder().norm]),
    ):
        mllm(image, query)
