"""Decoders that look at images by cross-attention: what is explained, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    LLMAttribution,
    Occlusion,
    Saliency,
    TextTemplateInput,
)
from torch import Tensor, nn

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    TokenCam,
)
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.explain import exact_reasons
from captum_mllm.models import Query
from captum_mllm.models.batches import batch_states
from captum_mllm.models.locate import locate
from captum_mllm.models.pixels import to_pil
from tests.models.test_families import scaled
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_later_families import mllama

# One tile, two beside each other, four on top of each other, and four of a square.
SIZES = {(40, 52): 1, (50, 100): 2, (200, 40): 4, (97, 91): 4}


def build() -> MLLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = mllama()
    return MLLM(model.eval(), processor)


shared = cache(build)


def picture(size: tuple[int, int]) -> Tensor:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return image.mul(255).round() / 255


def opened(size: tuple[int, int], target: Any = "a cat") -> tuple[MLLM, Tensor, Query]:
    mllm = shared()
    return (mllm, *mllm.prepare(ImageTextInput(picture(size), "what is it ?"), target=target))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_changed_cell_moves_its_own_state_most(size: tuple[int, int]) -> None:
    mllm, image, query = opened(size)
    assert len(mllm.layouts(image, query)[0].pieces) == SIZES[size]
    for scale in (1.0, 2.0) if size == (200, 40) else (0.5, 1.0):
        shown = scaled(image, scale)

        def encode(images: Tensor) -> Any:
            return mllm.encode((images,), query)

        located = locate(mllm.backbone, encode, shown, cells=8, pieces=2)
        assert located.found == located.tried > 0, scale
        own = encode(shown.clone().requires_grad_()).inputs["pixel_values"]
        with torch.no_grad():
            processors = encode(shown).inputs["pixel_values"]
        assert own.requires_grad and (own - processors).abs().mean() < 0.5 / 255, scale


def test_a_state_is_seen_by_the_rows_that_attend_to_it() -> None:
    mllm, image, query = opened((50, 100))
    maps = AttentionMaps(mllm, mode="raw").attribute(image, additional_forward_args=(query,))
    encoding = mllm.encode((image,), query)
    mllm.model.set_attn_implementation("eager")
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        seen.append(output[1])

    layers = mllm.model.get_decoder().layers
    handles = [layers[index].cross_attn.register_forward_hook(keep) for index in (1, 3)]
    try:
        with torch.no_grad():
            mllm.model(**encoding.inputs)
    finally:
        for handle in handles:
            handle.remove()
        mllm.model.set_attn_implementation("sdpa")
    weights = torch.stack(seen).mean((0, 2))[0, encoding.answer_rows]
    # Two tiles of 4 x 4 patches beside each other, a class token before each.
    left, right = weights[:, 1:17], weights[:, 18:34]
    assert encoding.layouts[0].n_tokens == 32
    painted = encoding.layouts[0].paint(torch.cat([left, right], 1))
    torch.testing.assert_close(maps[:, 0], painted, rtol=1e-4, atol=1e-6)


def test_teacher_forcing_equals_stepwise_generation_and_batches_single_runs() -> None:
    mllm, image, query = opened((50, 100), target=[7])
    inputs = mllm.encode((image,), query).inputs
    said = mllm.model.generate(
        **inputs,
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    answer = tuple(said.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    forced = mllm(image, replace(query, answer_ids=answer))
    torch.testing.assert_close(forced, torch.stack(said.logits, 1), rtol=0, atol=1e-4)
    _, shorter = mllm.prepare(ImageTextInput(image[0], "what"), target="a dog")
    prompts = [((image,), query), ((scaled(image, 0.5),), shorter)]
    for found, prompt in zip(batch_states(mllm.backbone, prompts), prompts):
        alone = mllm.states(*prompt[0], prompt[1])
        torch.testing.assert_close(found[None].predicting, alone.predicting, rtol=0, atol=1e-5)
        assert alone.image == ()


def test_captum_explains_it_and_the_model_is_left_as_it_was() -> None:
    mllm = build()
    image, query = mllm.prepare(
        ImageTextInput(picture((50, 100)), "what is it ?"), max_new_tokens=3
    )
    before = snapshot(mllm.model)
    target = (0, query.answer_ids[0])
    arguments = {"target": target, "additional_forward_args": (query,)}
    for method in (Saliency(mllm), MSEA(Saliency(mllm))):
        maps = method.attribute(image, **arguments)
        assert maps.isfinite().all() and maps.abs().sum() > 0
    maps = Occlusion(mllm).attribute(
        image, sliding_window_shapes=(3, 25, 25), strides=(3, 25, 25), **arguments
    )
    assert maps.isfinite().all() and maps.abs().sum() > 0
    attention = AttentionMaps(mllm, mode="raw", relative=True)
    for method in (attention, MSEA(attention), ARC(MSEA(attention))):
        maps = method.attribute(image, additional_forward_args=(query,))
        assert maps.isfinite().all() and maps.abs().sum() > 0
    text = attention.attribute_text(image, additional_forward_args=(query,))
    assert text.isfinite().all() and text.sum() > 0
    assert snapshot(mllm.model) == before


def test_captums_language_model_attribution_gives_the_scores_of_the_model() -> None:
    mllm, image, query = opened((50, 100))
    language_model = mllm.as_language_model(picture((50, 100)))
    inp = TextTemplateInput(
        language_model.expand(mllm.processor.image_token + "{} {} ?"), values=["what", "is"]
    )
    explainer = LLMAttribution(FeatureAblation(language_model), mllm.tokenizer)
    values = [
        explainer.attribute(inp, target="a cat", use_cached_outputs=cached).token_attr
        for cached in (True, False)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-4)
    assert values[0].abs().sum() > 0
    inputs = mllm.encode((image,), replace(query, answer_ids=(7,))).inputs
    shown = mllm.processor(
        images=[[to_pil(image[0])]],
        text=[query.prompt],
        return_tensors="pt",
        add_special_tokens=False,
    )
    own = language_model(shown["input_ids"]).logits[:, -1]
    with torch.no_grad():
        torch.testing.assert_close(own, mllm.model(**inputs).logits[:, -1], rtol=0, atol=1e-4)


REFUSED: dict[str, Callable[[MLLM], Any]] = {
    "LogitLens": LogitLens,
    "AttendedLens": AttendedLens,
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "TokenCam": TokenCam,
    "TokenCam of a layer": lambda mllm: TokenCam(mllm, layer=0),
    "rollout": AttentionMaps,
    "gradient": lambda mllm: AttentionMaps(mllm, mode="gradient"),
    "vision": lambda mllm: AttentionMaps(mllm, mode="raw", tower="vision"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_what_needs_image_tokens_is_refused_with_what_to_use(method: str) -> None:
    with pytest.raises(ValueError, match=r"cross-attention.*mode='raw'") as refused:
        REFUSED[method](shared())
    assert "'mllama'" in str(refused.value)


def test_layers_without_cross_attention_are_refused() -> None:
    with pytest.raises(ValueError, match=r"some of \[1, 3\]"):
        AttentionMaps(shared(), mode="raw", layers=[0])


def test_the_check_passes_and_says_what_there_is_not() -> None:
    report = shared().check(ImageTextInput(picture((50, 100)), "what is it ?"), (1.0, 2.0))
    assert report.passed, str(report)
    (attention,) = (verdict for verdict in report.verdicts if verdict.name == "attention")
    assert attention.passed is None and "[1, 3] of 4 look at the image" in attention.detail


def test_reasons_take_a_mean_image_and_what_reads_image_tokens_is_refused() -> None:
    mllm, image, query = opened((40, 52))
    found = exact_reasons(mllm, image, query)
    expected = exact_reasons(mllm, image, query, absent_image="mean")
    torch.testing.assert_close(found.coalitions, expected.coalitions)
    assert "absent image: 'mean'" in found.method
    explainer = MLLMAttribution(Saliency(mllm))
    inp = ImageTextInput(picture((40, 52)), "what is it ?")
    for extras in ({"reasons": "estimate"}, {"diagnosis": True}):
        with pytest.raises(ValueError, match="cross-attention"):
            explainer.attribute(inp, target="a cat", **extras)
    result = explainer.attribute(inp, target="a cat", reasons="exact")
    assert result.reasons is not None and result.reasons.exact
    with pytest.raises(ValueError, match="cross-attention"):
        explainer.what_if(result, "cat", by="knockout")
    assert explainer.what_if(result, "cat", answer=False).selected == [1]
