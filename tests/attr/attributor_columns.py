"""The kinds of models (columns) that attribution methods are tried on, with what they explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from captum.attr import Attribution
from PIL import Image
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.demo import DEMO_PROMPT, demo_image
from captum_mllm.models.towers import decoder_layers, vision_layers
from tests.attr.rectified_classifier import RectifiedClassifier
from tests.attr.toy_networks import VisionTransformerClassifier
from tests.models.tiny_models import build

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Column:
    """A model, an image and a target; float64 throughout."""

    title: str
    network: nn.Module
    images: Tensor
    target: Any
    extra: tuple[Any, ...] = ()
    layers: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def is_multimodal(self) -> bool:
        return isinstance(self.network, MLLM)

    @property
    def forward_arguments(self) -> dict[str, Any]:
        return {"target": self.target, "additional_forward_args": self.extra or None}

    @property
    def size(self) -> Size:
        return self.images.shape[2], self.images.shape[3]

    def explain(self, attribution: Attribution, **arguments: Any) -> Tensor:
        """A method's attributions for the target, detached."""
        arguments |= self.forward_arguments
        return attribution.attribute(self.images.clone(), **arguments).detach()

    def score(self, images: Tensor) -> Tensor:
        """The explained number for each image, (B,)."""
        output = self.network(images, *self.extra)
        place = self.target if isinstance(self.target, tuple) else (self.target,)
        return output[(slice(None), *place)]

    def difference(self) -> float:
        """Of the scores of the image and of a black one, on the path that gradients take."""
        black = torch.zeros_like(self.images)
        return self.differentiable_score(self.images) - self.differentiable_score(black)

    def differentiable_score(self, images: Tensor) -> float:
        return self.score(images.clone().requires_grad_()).item()


def noise(size: Size, seed: int = 0) -> Tensor:
    levels = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)).mul(255).round()
    return levels.double() / 255


def _classifier(title: str, network: nn.Module, layer: str, target: int) -> Column:
    network = network.double()
    layers = {"first": network.get_submodule(layer)}
    return Column(title, network, noise((16, 24))[None], target, layers=layers)


def _multimodal(title: str, mllm: MLLM, inp: ImageTextInput, target: str, step: int) -> Column:
    image, query = mllm.prepare(inp, target=target)
    layers = {"first": decoder_layers(mllm.model)[0], "vision": vision_layers(mllm.model)[0]}
    place = (step, query.answer_ids[step])
    return Column(title, mllm, image.double(), place, (query,), layers)


def _tiny(title: str, family: str, size: Size) -> Column:
    model, processor = build(family)
    inp = ImageTextInput(noise(size), "what is it ?")
    return _multimodal(title, MLLM(model.double(), processor), inp, "a cat", 1)


def _bundled(title: str, name: str) -> Column:
    mllm = MLLM.from_pretrained(name, dtype="float64")
    with Image.open(demo_image()) as image:
        inp = ImageTextInput(image, DEMO_PROMPT)
        return _multimodal(f"bundled {title}", mllm, inp, "a striped red star", 3)


COLUMNS: dict[str, Callable[[], Column]] = {
    "cnn": lambda: _classifier("CNN", RectifiedClassifier(seed=1), "last", 2),
    "vit": lambda: _classifier("ViT classifier", VisionTransformerClassifier(), "patches", 1),
    "qwen2_vl": lambda: _tiny("Qwen2-VL", "qwen2_vl", (56, 84)),
    "llava": lambda: _tiny("LLaVA-1.5", "llava", (84, 84)),
    "internvl": lambda: _tiny("InternVL", "internvl", (56, 112)),
}
BUNDLED = {
    "bundled": lambda: _bundled("Qwen2-VL", "demo/qwen2-vl"),
    "bundled_llava": lambda: _bundled("LLaVA-1.5", "demo/llava-1.5"),
    "bundled_internvl": lambda: _bundled("InternVL", "demo/internvl"),
}
MULTIMODAL = ("qwen2_vl", "llava", "internvl")

#: The bundled models as parameters of a test: as the tiny ones, but larger, and so long tests.
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in BUNDLED]


@cache
def column(name: str) -> Column:
    return {**COLUMNS, **BUNDLED}[name]()


def quadrants(size: Size) -> Tensor:
    """Four segments of an image, (1, 1, H, W)."""
    down = (torch.arange(size[0]) * 2 // size[0])[:, None]
    return (2 * down + torch.arange(size[1]) * 2 // size[1])[None, None]
