"""Captum's own metrics take the maps of this package, once they have the shape of the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from captum_mllm import MSEA, LogitLens
from captum_mllm.attr import AttentionMaps, TokenCam
from tests.attr.attributor_columns import Column, column

METHODS = [LogitLens, TokenCam, AttentionMaps, lambda network: MSEA(LogitLens(network))]


def on_pixels(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (B, 1, h, w) as values of each channel of each pixel, as the docs do it."""
    return LayerAttribution.interpolate(maps, images.shape[-2:], "bilinear").expand_as(images)


def explain(method: Any, where: Column) -> Tensor:
    maps = method.attribute(where.images, **where.forward_arguments)
    return on_pixels(maps, where.images)


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
def test_infidelity_is_the_mean_square_of_what_a_map_does_not_foretell(
    name: str, make: Any
) -> None:
    where = column(name)
    maps = explain(make(where.network), where)
    generator = torch.Generator().manual_seed(0)
    # Darker by at least 1 of 255 levels, so that 8 bits tell the difference.
    amounts = 0.1 + 0.2 * torch.rand(3, *where.images.shape[1:], generator=generator).double()
    amounts = amounts * where.images
    remaining = iter(amounts)

    def darken(images: Tensor) -> tuple[Tensor, Tensor]:
        amount = torch.stack([next(remaining) for _ in images])
        return amount, images - amount

    found = infidelity(
        where.network,
        darken,
        where.images,
        maps,
        n_perturb_samples=3,
        **where.forward_arguments,
    )
    with torch.no_grad():
        drops = [
            (where.score(where.images) - where.score(where.images - amount)).item()
            for amount in amounts
        ]
    foretold = [(amount * maps[0]).sum().item() for amount in amounts]
    squares = [(first - second) ** 2 for first, second in zip(foretold, drops)]
    assert found.shape == (1,)
    assert found.item() == pytest.approx(sum(squares) / 3, rel=1e-3)
    assert found.item() > 0


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
def test_sensitivity_is_the_largest_relative_change_of_a_map(name: str, make: Any) -> None:
    where = column(name)
    method = make(where.network)
    noisy = 0.05 * torch.randn(
        3, *where.images.shape[1:], generator=torch.Generator().manual_seed(0)
    )
    others = (where.images + noisy.double()).clamp(0, 1)
    remaining = iter(others)

    def other(images: tuple[Tensor, ...], radius: float) -> tuple[Tensor, ...]:
        return (torch.stack([next(remaining) for _ in images[0]]),)

    found = sensitivity_max(
        method.attribute,
        where.images,
        perturb_func=other,
        n_perturb_samples=3,
        **where.forward_arguments,
    )
    before = method.attribute(where.images, **where.forward_arguments)
    changes = [
        (method.attribute(each[None], **where.forward_arguments) - before).norm() for each in others
    ]
    assert found.shape == (1,)
    assert found.item() == pytest.approx((max(changes) / before.norm()).item(), rel=1e-3)
    assert found.item() > 0


def test_maps_of_another_shape_than_the_image_are_refused() -> None:
    where = column("qwen2_vl")
    maps = LogitLens(where.network).attribute(where.images, **where.forward_arguments)
    with pytest.raises(AssertionError, match="must have matching shapes"):
        infidelity(
            where.network,
            lambda images: (images, images),
            where.images,
            maps,
            **where.forward_arguments,
        )
