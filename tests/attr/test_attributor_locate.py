"""Where a method points is proven: changing one patch of the image moves its map most there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from captum.attr import Attribution, Saliency
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.attr import AttentionMaps, TokenAttribution, TokenCam
from captum_mllm.models import Query
from captum_mllm.models.towers import vision_layers
from tests.models.tiny_models import FAMILIES, build

# Whole patches and merge blocks of every family, and more than one attention window of Qwen2.5-VL.
SIZES = {
    "qwen2_vl": (140, 196),
    "qwen2_5_vl": (140, 196),
    "qwen3_vl": (128, 192),
    "llava": (84, 84),
    "internvl": (56, 112),
}
# Many words, so that no change is missed because it is orthogonal to one of them.
ANSWER = list(range(3, 19))
N_LAYERS = 4
# What the families call the projection behind their attention.
ENDS = ("attn.proj", "o_proj", "out_proj", "projection_layer")


def deepen(model: Any) -> None:
    """Give the language model two more layers, so that there are several to choose from."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    for index in range(len(decoder.layers), N_LAYERS):
        layer = copy.deepcopy(decoder.layers[0])
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = config
        for weight in layer.parameters():
            if weight.ndim > 1:
                weight.data.mul_(1 + index / 10)
        decoder.layers.append(layer)
    config.num_hidden_layers = N_LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * N_LAYERS


def without_attention(family: str) -> MLLM:
    """Each state comes from its own token alone, but in the last layer of the language model."""
    model, processor = build(family)
    deepen(model)
    last = {id(module) for module in model.get_decoder().layers[-1].modules()}
    for name, module in model.named_modules():
        if id(module) not in last and name.endswith(ENDS):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return MLLM(model.double(), processor)


class Codes(nn.Module):
    """Queries and keys that tell the place of a patch alone, and the values as they were.

    Codes of length 1 have the largest product with themselves, so each patch attends to itself.
    """

    def __init__(self, n_heads: int, width: int, values: nn.Linear | None = None) -> None:
        super().__init__()
        self.shape, self.values = (n_heads, width // n_heads), values

    def forward(self, states: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randn(states.shape[-2], *self.shape, generator=generator).to(states)
        codes = 40 * nn.functional.normalize(codes, dim=-1).flatten(1)
        if self.values is None:
            return codes.expand(*states.shape[:-1], -1)
        values = self.values(states).chunk(3, dim=-1)[-1]
        return torch.cat([codes, codes, values], dim=-1)


def with_local_attention(family: str) -> MLLM:
    """Each patch attends to itself alone, and tokens of the language model are not mixed."""
    mllm = without_attention(family)
    for name, module in mllm.model.get_encoder(modality="image").named_modules():
        if hasattr(module, "qkv"):
            module.qkv = Codes(module.num_heads, module.qkv.in_features, module.qkv)
        elif hasattr(module, "q_proj"):
            module.q_proj = module.k_proj = Codes(module.num_heads, module.q_proj.in_features)
        if name.endswith(ENDS):
            nn.init.eye_(module.get_parameter("weight"))
    return mllm


def check_places(method: Attribution, mllm: MLLM, family: str) -> None:
    """Change some patches one by one."""
    size = SIZES[family]
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, *size, generator=generator).mul(255).round() / 255
    image, query = mllm.prepare(ImageTextInput(picture, "what is it ?"), target=ANSWER)
    before = explain(method, image, query)
    cell = 2 * mllm.model.config.vision_config.patch_size if family.startswith("qwen") else 28
    corners = [(y, x) for y in range(0, size[0], cell) for x in range(0, size[1], cell)]
    for y, x in corners[:: max(len(corners) // 3, 1)]:
        changed = image.clone()
        changed[..., y : y + cell, x : x + cell] = 1 - changed[..., y : y + cell, x : x + cell]
        moved = (explain(method, changed, query) - before).abs().sum((0, 1))
        row, column = divmod(int(moved.argmax()), moved.shape[1])
        assert y <= (row + 0.5) * size[0] / moved.shape[0] <= y + cell
        assert x <= (column + 0.5) * size[1] / moved.shape[1] <= x + cell


def explain(method: Attribution, image: Tensor, query: Query) -> Tensor:
    """Maps of every word of the answer, (T, C, h, w)."""
    if isinstance(method, TokenAttribution):
        return method.attribute(image, additional_forward_args=(query,))
    maps = [
        method.attribute(image.clone(), target=target, additional_forward_args=(query,))
        for target in list(enumerate(query.answer_ids))[::4]
    ]
    return torch.cat(maps)


@pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")
@pytest.mark.parametrize("family", FAMILIES)
def test_saliency(family: str) -> None:
    mllm = without_attention(family)
    check_places(Saliency(mllm), mllm, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_cam_at_every_layer(family: str) -> None:
    mllm = without_attention(family)
    depth = len(vision_layers(mllm.model))
    for tower, count in (("decoder", N_LAYERS - 1), ("vision", depth)):
        for layer in range(count):
            check_places(TokenCam(mllm, layer, "grad_cam", tower), mllm, family)
    check_places(TokenCam(mllm), mllm, family)
    with pytest.raises(ValueError, match="is the last of the language model"):
        TokenCam(mllm, N_LAYERS - 1, tower="decoder")


@pytest.mark.parametrize("mode", ["raw", "rollout", "gradient"])
@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rollout_of_local_attention(family: str, tower: Any, mode: Any) -> None:
    # Where nothing is mixed, the order of the tower's patches cancels out; it is put to the test
    # by the matrix products of test_attention_maps.
    mllm = with_local_attention(family)
    check_places(AttentionMaps(mllm, mode, tower=tower), mllm, family)
