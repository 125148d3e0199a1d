"""The geometry of a model is found without the table, or refused if its tokens lie nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput, LogitLens
from captum_mllm.models.families import family_of
from captum_mllm.models.probe import probe
from tests.models.tiny_families import FAMILIES, build, shared

# Of two geometries that lay tokens out alike, another may be found first.
ALIKE = {"PaddedSquare": {"FixedSquare"}}
# Those that cut no tiles unless they are told to, so that one square is as right.
UNCUT = {"got_ocr2": {"FixedSquare"}}
# Those that differ in nothing but how a scale is asked for.
SAME_TOKENS = {"glm4v", "glm4v_moe", "glm46v", "glm_ocr", "cohere2_vision"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("qwen2_vl", "smolvlm") else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_the_geometry_is_found_without_the_table(family: str) -> None:
    model, processor = shared(family)
    row, found = family_of(model.config), probe(model, processor)
    names = {row.geometry.__name__} | ALIKE.get(row.geometry.__name__, set())
    names |= UNCUT.get(family, set())
    assert found.geometry.__name__ in names
    assert dict(found.options) == dict(row.options) or family in SAME_TOKENS


def shuffle(module: nn.Module, order: Callable[[int], Tensor]) -> None:
    def mix(module: nn.Module, args: Any, output: Any) -> Any:
        return output[..., order(output.shape[-2]), :]

    module.register_forward_hook(mix)


def shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))


SHUFFLED: dict[str, tuple[Callable[[Any], nn.Module], Callable[[int], Tensor]]] = {
    "llava": (lambda model: model.model.multi_modal_projector, shuffled),
    "paligemma": (lambda model: model.model.multi_modal_projector, lambda count: shuffled(count)),
    "internvl": (lambda model: model.model.multi_modal_projector, lambda count: shuffled(count)),
    "qwen2_vl": (lambda model: model.model.visual.merger, shuffled),
}


@pytest.mark.parametrize("family", SHUFFLED)
def test_shuffled_tokens_are_refused(family: str) -> None:
    model, processor = build(family)
    part, order = SHUFFLED[family]
    shuffle(part(model), order)
    with pytest.raises(ValueError, match=r"no geometry is right for .* the best finds [0-9]+%"):
        MLLM(model, processor, geometry="probe")


def test_a_family_that_was_found_is_explained() -> None:
    model, processor = build("llava")
    model.config.model_type = "my_vl"
    mllm = MLLM(model, processor, geometry="probe")
    image = torch.rand(3, 96, 120, generator=torch.Generator().manual_seed(0))
    picture, query = mllm.prepare(ImageTextInput(image, "what is it ?"), target="a cat")
    maps = LogitLens(mllm).attribute(picture, additional_forward_args=(query,))
    assert maps.isfinite().all() and maps.abs().sum() > 0
    assert mllm.check(scales=(1.0, 2.0)).passed
