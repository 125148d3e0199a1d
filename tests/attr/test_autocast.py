"""Explanations under autocast are those without it, up to the precision of the model's pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    AttentionMaps,
    ImageTextInput,
    LogitDecomposition,
    LogitLens,
    MLLMAttribution,
    TokenCam,
)
from tests.models.tiny_models import shared

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is in the image ?")

METHODS: dict[str, Callable[[MLLM], Any]] = {
    "lens": LogitLens,
    "lens of a layer": lambda mllm: LogitLens(mllm, layer=0),
    "attended lens": AttendedLens,
    "MSEA": lambda mllm: MSEA(LogitLens(mllm)),
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "ARC": lambda mllm: ARC(MSEA(AttendedLens(mllm))),
    "rollout": AttentionMaps,
    "raw attention": lambda mllm: AttentionMaps(mllm, mode="raw"),
    "gradient rollout": lambda mllm: AttentionMaps(mllm, mode="gradient"),
    "Grad-CAM": TokenCam,
    "decomposition": LogitDecomposition,
}


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("name", METHODS)
def test_maps_under_autocast_are_those_without(name: str, family: str) -> None:
    explainer = MLLMAttribution(METHODS[name](MLLM(*shared(family))))
    expected = explainer.attribute(INPUT, target="a cat")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explainer.attribute(INPUT, target="a cat")
    for attribute in ("image_attr", "token_attr", "output_probs"):
        ours, others = getattr(found, attribute), getattr(expected, attribute)
        assert ours.dtype == others.dtype
        # The model's own products have 8 bits, ours follow from them. Gradients pass through all of
        # its products, and those of a random model are small differences of large terms.
        if name == "Grad-CAM":
            likeness = torch.cosine_similarity(ours.flatten(), others.flatten(), dim=0)
            assert likeness > 0.8, attribute
        else:
            assert (ours - others).abs().max() <= 0.06 * others.abs().max(), attribute
