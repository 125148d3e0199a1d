"""Own sums are exact under autocast, and states that overflow are named where they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_mllm import MLLM, AttentionMaps, ImageTextInput
from captum_mllm.models import Layout, Piece
from captum_mllm.models.precision import check_finite, full_precision
from captum_mllm.models.vocabulary import Vocabulary
from tests.models.tiny_models import build, shared

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is in the image ?")


def test_products_are_those_of_their_dtype_within_autocast() -> None:
    a, b = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            inside = a @ b
        outside = a @ b
    assert torch.equal(inside, a @ b)
    assert outside.dtype == torch.bfloat16
    with full_precision():
        assert torch.equal(a @ b, inside)


@pytest.mark.parametrize("name", ["scores", "rankings", "predictions"])
def test_the_vocabulary_is_read_in_full_precision(name: str) -> None:
    mllm = MLLM(*shared("llava"))
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5, 10)
    arguments: dict[str, Any] = {
        "scores": (states, ids),
        "rankings": (states, 20),
        "predictions": (states, ids, 20),
    }
    vocabulary = Vocabulary(mllm.model.get_output_embeddings())
    expected = getattr(vocabulary, name)(*arguments[name])
    with torch.autocast("cpu", torch.bfloat16):
        found = getattr(vocabulary, name)(*arguments[name])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_maps_are_painted_in_full_precision() -> None:
    layout = Layout((60, 90), (Piece(4, 6, (0, 0, 90, 60)),))
    values = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    expected = layout.paint(values, size=(30, 50))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layout.paint(values, size=(30, 50)), expected)


def overflowing(dtype: torch.dtype = torch.float32) -> MLLM:
    model, processor = build("qwen2_vl")
    model.to(dtype)
    mlp = model.model.language_model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight.mul_(1e3)
        mlp.up_proj.weight.mul_(1e3)
        mlp.down_proj.weight.fill_(torch.finfo(dtype).max)
    return MLLM(model, processor)


@pytest.mark.parametrize("target", [None, "a cat"])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_the_module_that_overflows_is_named(target: str | None, layer: int | None) -> None:
    mllm = overflowing()
    before = {name: len(part._forward_hooks) for name, part in mllm.named_modules()}
    with pytest.raises(FloatingPointError, match=r"layers\.1\.mlp\.down_proj.* is the first"):
        mllm.states(*mllm.prepare(INPUT, target=target), layer=layer)
    assert {name: len(part._forward_hooks) for name, part in mllm.named_modules()} == before


@pytest.mark.parametrize("mode", ["raw", "rollout"])
def test_passes_that_record_attention_name_it_too(mode: Any) -> None:
    mllm = overflowing()
    image, query = mllm.prepare(INPUT, target="a cat")
    with pytest.raises(FloatingPointError, match=r"layers\.1\.mlp\.down_proj.* is the first"):
        AttentionMaps(mllm, mode=mode).attribute(image, additional_forward_args=(query,))


def test_weights_that_are_not_finite_are_named() -> None:
    model, processor = build("llava")
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the weights '.*' are not finite"):
        MLLM(model, processor).prepare(INPUT, max_new_tokens=3)


def test_float16_is_told_the_way_out() -> None:
    mllm = overflowing(torch.float16)
    with pytest.raises(FloatingPointError, match=r'float16 holds numbers up to .*dtype="bfloat16"'):
        mllm.prepare(INPUT)


def test_finite_states_pass_without_another_pass() -> None:
    model: Any = None
    check_finite(torch.ones(2, 3), model, {})
