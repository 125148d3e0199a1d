"""Inputs that require gradients, before, during and after."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import Attribution, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    ImageTextInput,
    LogitDecomposition,
    LogitLens,
    MLLMAttribution,
)
from captum_mllm.attr import AttentionMaps, TokenCam
from tests.attr.toy_networks import ConvolutionalClassifier
from tests.models.test_mllm import random_image
from tests.models.tiny_models import build, shared

PROMPT = "what is in the image ?"

TAKE_GRADIENTS: list[Callable[[MLLM], Attribution]] = [
    Saliency,
    IntegratedGradients,
    TokenCam,
    lambda mllm: AttentionMaps(mllm, mode="gradient"),
    LogitDecomposition,
    lambda mllm: MSEA(NoiseTunnel(Saliency(mllm))),
    lambda mllm: ARC(MSEA(Saliency(mllm))),
]


@pytest.mark.parametrize("method", TAKE_GRADIENTS)
def test_gradient_methods_are_refused_under_inference_mode(
    method: Callable[[MLLM], Attribution],
) -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(method(mllm))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="takes gradients, and torch"):
        explainer.attribute(ImageTextInput(random_image(84, 84), PROMPT), target="a cat")


def test_msea_of_a_gradient_method_is_refused_under_inference_mode() -> None:
    msea = MSEA(Saliency(ConvolutionalClassifier()))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="Saliency takes gradients"):
        msea.attribute(torch.rand(1, 3, 8, 8), target=0)


def test_other_methods_run_under_inference_mode_and_leave_nothing_behind() -> None:
    mllm = MLLM(*shared("llava"))
    inp = ImageTextInput(random_image(84, 90), PROMPT)
    with torch.inference_mode():
        inside = MLLMAttribution(ARC(MSEA(LogitLens(mllm)))).attribute(inp, target="a cat")
    outside = MLLMAttribution(ARC(MSEA(LogitLens(mllm)))).attribute(inp, target="a cat")
    assert torch.equal(inside.image_attr, outside.image_attr)
    assert MLLMAttribution(Saliency(mllm)).attribute(inp, target="a cat").image_attr.any()


@pytest.mark.parametrize("wrapper", [ARC, TAM, MLLMAttribution, MSEA, lambda m: ARC(MSEA(m))])
@pytest.mark.parametrize("required", [True, False])
def test_images_require_gradients_as_before_also_after_an_exception(
    wrapper: Callable[[Attribution], Any], required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = MLLM(*build("llava"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    image, query = mllm.prepare(inp, target="a cat")
    image.requires_grad_(required)
    prepared: list[Any] = []
    if wrapper is MLLMAttribution:
        monkeypatch.setattr(
            "captum_mllm.explain.mllm_attribution.open_query",
            lambda *_: prepared.append(image) or ((image,), query),
        )
    method = wrapper(Saliency(mllm))

    def run() -> None:
        if wrapper is MLLMAttribution:
            method.attribute(inp, target="a cat")
        else:
            target = (0, query.answer_ids[0])
            options = {} if wrapper in (ARC, TAM) else {"scales": (1.0,)}
            method.attribute(image, target=target, additional_forward_args=(query,), **options)

    run()
    assert image.requires_grad == required
    for fails in (mllm.model.get_decoder().layers[1], mllm.model.get_decoder().norm):

        def fail(*_: Any) -> None:
            raise RuntimeError("out of memory")

        handle = fails.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            run()
        handle.remove()
        assert image.requires_grad == required
    assert image.grad is None
    assert bool(prepared) == (wrapper is MLLMAttribution)


@pytest.mark.parametrize("method_class", [Saliency, IntegratedGradients])
def test_msea_does_not_warn_of_gradients_that_it_asks_for_itself(
    method_class: type[Attribution],
) -> None:
    msea = MSEA(method_class(ConvolutionalClassifier()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msea.attribute(torch.rand(1, 3, 8, 8), scales=(0.5, 1.0), target=0)


@pytest.mark.parametrize("method_class", [Saliency, LayerGradCam])
def test_inputs_require_gradients_only_where_the_method_takes_theirs(
    method_class: type[Attribution],
) -> None:
    network = ConvolutionalClassifier()
    required: list[bool] = []
    network.first.register_forward_pre_hook(lambda _, args: required.append(args[0].requires_grad))
    layers = (network.last,) if method_class is LayerGradCam else ()
    MSEA(method_class(network, *layers)).attribute(torch.rand(1, 3, 8, 8), target=0)
    assert required == [method_class is Saliency] * 4
