"""Captum's gradient methods give right values on every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    Attribution,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from torch import Tensor

from tests.attr.attributor_columns import BUNDLED, COLUMNS, LARGER, Column, column

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor .* did not already require gradients",
    "ignore:Setting (forward, )?backward hooks",
    "ignore:images have values outside",
)
everywhere = pytest.mark.parametrize("name", [*COLUMNS, *LARGER])
# Their non-linearities are no modules that a method has a rule for.
without_rules = pytest.mark.parametrize("name", [*list(COLUMNS)[1:], *LARGER])


def gradient(where: Column, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(where.score(images).sum(), images)[0]


@everywhere
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    where = column(name)
    # Of low contrast: what reaches 0 or 1, here or by resizing, is cut, which has no derivative.
    images = 0.3 + 0.4 * where.images
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    # Multimodal models round to float32 here and there, so a smaller step finds no more.
    step = 1e-3 if where.is_multimodal else 1e-6
    higher, lower = (
        where.differentiable_score(images + sign * step * direction) for sign in (1.0, -1.0)
    )
    method = Saliency(where.network)
    slope = method.attribute(images, abs=False, **where.forward_arguments)
    expected = (higher - lower) / (2 * step)
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=5e-3)
    sizes = method.attribute(images, **where.forward_arguments)
    assert torch.equal(sizes, slope.abs())
    product = InputXGradient(where.network).attribute(images, **where.forward_arguments)
    torch.testing.assert_close(product, images * slope)


@pytest.mark.parametrize(
    ("name", "n_steps", "method"),
    [*((name, 32, "gausslegendre") for name in COLUMNS)]
    # A trained model is steep near a black image.
    + [pytest.param(name, 200, "riemann_trapezoid", marks=pytest.mark.slow) for name in BUNDLED],
)
def test_integrated_gradients_sum_to_the_difference(name: str, n_steps: int, method: str) -> None:
    where = column(name)
    maps, delta = IntegratedGradients(where.network).attribute(
        where.images,
        n_steps=n_steps,
        method=method,
        internal_batch_size=20,
        return_convergence_delta=True,
        **where.forward_arguments,
    )
    difference = where.difference()
    assert abs(delta.item()) < 0.01 * abs(difference)
    assert maps.sum().item() == pytest.approx(difference, rel=0.01)


@pytest.mark.parametrize("name", COLUMNS)
def test_gradient_shap_of_one_baseline_sums_to_the_difference(name: str) -> None:
    where = column(name)
    np.random.seed(0)  # noqa: NPY002 (Captum draws from it)
    torch.manual_seed(0)
    black = torch.zeros_like(where.images)
    maps = where.explain(GradientShap(where.network), baselines=black, n_samples=100)
    difference = where.difference()
    assert maps.sum().item() == pytest.approx(difference, rel=0.1)


def test_deep_lift_sums_to_the_difference_where_it_has_rules() -> None:
    where = column("cnn")
    black = torch.zeros_like(where.images)
    maps, delta = DeepLift(where.network).attribute(
        where.images, black, return_convergence_delta=True, **where.forward_arguments
    )
    difference = where.difference()
    assert maps.sum().item() == pytest.approx(difference, rel=1e-9)
    assert abs(delta.item()) < 1e-9
    # That is not what the gradient gives.
    product = where.images * gradient(where, where.images)
    assert product.sum().item() != pytest.approx(difference, rel=1e-4)


def test_deep_lift_is_the_gradient_times_the_difference_without_rules() -> None:
    where = column("vit")
    grey = torch.full_like(where.images, 0.25)
    maps = where.explain(DeepLift(where.network), baselines=grey)
    expected = (where.images - grey) * gradient(where, where.images)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-9 * expected.abs().max())


@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_deep_lift_is_refused_on_multimodal_models(method: Callable[..., Attribution]) -> None:
    where = column("qwen2_vl")
    black = torch.zeros_like(where.images).expand(2, -1, -1, -1)
    with pytest.raises(NotImplementedError, match="take InputXGradient"):
        where.explain(method(where.network), baselines=black[: 1 if method is DeepLift else 2])
    modules = list(where.network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    where.network(where.images, *where.forward_arguments["additional_forward_args"])


class Rectify(torch.autograd.Function):
    """A rectifier with the backward rule of guided backpropagation or of deconvolution."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, guided: bool) -> Tensor:
        ctx.passes = values > 0 if guided else torch.ones_like(values, dtype=torch.bool)
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return slope.clamp(min=0) * ctx.passes, None


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
def test_rules_for_rectifiers_are_followed(method: Callable[..., Attribution]) -> None:
    where = column("cnn")
    network: Any = where.network
    images = where.images.clone().requires_grad_()
    guided = method is GuidedBackprop
    hidden = Rectify.apply(network.first(images), guided)
    hidden = Rectify.apply(network.last(hidden), guided)
    score = network.head(hidden.mean(dim=(2, 3)))[0, where.target]
    (expected,) = torch.autograd.grad(score, images)
    torch.testing.assert_close(where.explain(method(network)), expected)
    assert not torch.allclose(expected, gradient(where, where.images), rtol=0.1)


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
@without_rules
def test_without_rectifiers_the_gradient_is_left(
    name: str, method: Callable[..., Attribution]
) -> None:
    where = column(name)
    expected = gradient(where, where.images)
    torch.testing.assert_close(where.explain(method(where.network)), expected)


@pytest.mark.parametrize("method", [Saliency, InputXGradient, IntegratedGradients])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_noise_tunnel_is_the_mean_over_noisy_images(
    name: str, method: Callable[..., Attribution]
) -> None:
    where = column(name)
    arguments = {"n_steps": 3} if method is IntegratedGradients else {}
    torch.manual_seed(0)
    tunnel = NoiseTunnel(method(where.network))
    found = where.explain(tunnel, nt_samples=3, stdevs=0.02, **arguments)
    torch.manual_seed(0)
    draws = where.images + torch.normal(0, torch.full((3, *where.images.shape[1:]), 0.02))
    maps = [
        method(where.network).attribute(draw[None], **where.forward_arguments, **arguments)
        for draw in draws.double()
    ]
    expected = torch.stack(maps).mean(0).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
