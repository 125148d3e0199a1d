"""Attribution methods (rows) with their arguments, for tests and for the table in the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from captum.attr import (
    Attribution,
    Deconvolution,
    DeepLift,
    FeatureAblation,
    FeaturePermutation,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    InternalInfluence,
    KernelShap,
    LayerActivation,
    LayerConductance,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValues,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_mllm import MSEA, LogitDecomposition, LogitLens
from captum_mllm.attr import AttendedLens, AttentionMaps, TokenCam
from tests.attr.attributor_columns import Column, Size, column, quadrants

SCALES = (1.0, 1.5)


class LeastSquares:
    """A linear model for Lime and KernelShap, whose own want scikit-learn."""

    def fit(self, train_data: Any, **kwargs: Any) -> None:
        inputs, outputs, weights = (torch.cat(part).double() for part in zip(*train_data))
        root = weights.flatten().sqrt()[:, None]
        design = torch.cat([torch.ones_like(inputs[:, :1]), inputs], dim=1) * root
        self.coefficients = torch.linalg.lstsq(design, outputs.reshape(-1, 1) * root).solution[1:]

    def representation(self) -> Tensor:
        return self.coefficients.T


def lime(network: nn.Module) -> Lime:
    return Lime(network, interpretable_model=LeastSquares())


def kernel_shap(network: nn.Module) -> KernelShap:
    method = KernelShap(network)
    method.interpretable_model = LeastSquares()
    return method


def swap(images: Tensor, mask: Tensor) -> Tensor:
    """Two images exchange a segment."""
    return torch.where(mask, images.flip(0), images)


Arguments = Callable[[Column, Size], dict[str, Any]]


def _none(column: Column, size: Size) -> dict[str, Any]:
    return {}


def fixed(**arguments: Any) -> Arguments:
    return lambda column, size: arguments


def segments(**arguments: Any) -> Arguments:
    return lambda column, size: {"feature_mask": quadrants(size), **arguments}


def _windows(column: Column, size: Size) -> dict[str, Any]:
    window = (3, size[0] // 2, size[1] // 2)
    return {"sliding_window_shapes": window, "strides": window}


def _halves(column: Column, size: Size) -> dict[str, Any]:
    return {"feature_mask": quadrants(size) // 2, "perturbations_per_eval": 2}


def _black(column: Column, size: Size) -> dict[str, Any]:
    return {"baselines": torch.zeros(1, 3, *size, dtype=torch.float64), "n_samples": 4}


@dataclass(frozen=True, eq=False)
class Row:
    """A method and its arguments, which may depend on the size of the image."""

    name: str
    method: Callable[[Column], Attribution]
    arguments: Arguments = _none
    layer: str | None = None
    batch: int = 1
    takes_target: bool = True

    def applies_to(self, column: Column) -> bool:
        return self.layer is None or self.layer in column.layers

    def run(self, column: Column, wrapped: bool) -> Any:
        """The attributions, alone or under MSEA."""
        np.random.seed(0)  # noqa: NPY002 (GradientShap draws from it)
        torch.manual_seed(0)
        method = self.method(column)
        scales = {"scales": SCALES} if wrapped else {}
        method = MSEA(method, normalize="none") if wrapped else method
        return method.attribute(self.inputs(column), **self.kwargs(column), **scales)

    def inputs(self, column: Column) -> Tensor:
        flipped = column.images.flip(-1)
        return torch.cat([column.images, flipped])[: self.batch].clone()

    def kwargs(self, column: Column, size: Size | None = None) -> dict[str, Any]:
        found = dict(column.forward_arguments)
        if not self.takes_target:
            del found["target"]
        return {**found, **self.arguments(column, size or column.size)}


def _on_network(method: Callable[..., Attribution]) -> Callable[[Column], Attribution]:
    return lambda column: method(column.network)


def _tunnel(method: Callable[..., Attribution]) -> Callable[[Column], Attribution]:
    return lambda column: NoiseTunnel(method(column.network))


def _on_layer(method: Callable[..., Attribution], layer: str) -> Callable[[Column], Attribution]:
    return lambda column: method(column.network, column.layers[layer])


TUNNEL: dict[str, Any] = {"nt_samples": 2, "stdevs": 0.01}
IMAGE_ROWS = [
    Row("Saliency", _on_network(Saliency)),
    Row("InputXGradient", _on_network(InputXGradient)),
    Row("IntegratedGradients", _on_network(IntegratedGradients), fixed(n_steps=4)),
    Row("GradientShap", _on_network(GradientShap), _black),
    Row("DeepLift", _on_network(DeepLift)),
    Row("GuidedBackprop", _on_network(GuidedBackprop)),
    Row("Deconvolution", _on_network(Deconvolution)),
    Row("FeatureAblation", _on_network(FeatureAblation), segments()),
    Row(
        "FeaturePermutation",
        lambda column: FeaturePermutation(column.network, perm_func=swap),
        segments(),
        batch=2,
    ),
    Row("Occlusion", _on_network(Occlusion), _windows),
    Row("ShapleyValueSampling", _on_network(ShapleyValueSampling), segments(n_samples=2)),
    Row("ShapleyValues", _on_network(ShapleyValues), _halves),
    Row("Lime", _on_network(lime), segments(n_samples=8)),
    Row("KernelShap", _on_network(kernel_shap), segments(n_samples=8)),
    Row("NoiseTunnel(Saliency)", _tunnel(Saliency), fixed(**TUNNEL)),
    Row("NoiseTunnel(InputXGradient)", _tunnel(InputXGradient), fixed(**TUNNEL)),
    Row(
        "NoiseTunnel(IntegratedGradients)", _tunnel(IntegratedGradients), fixed(**TUNNEL, n_steps=3)
    ),
]
_LAYER_METHODS: list[tuple[Callable[..., Attribution], dict[str, Any]]] = [
    (LayerGradCam, {}),
    (LayerIntegratedGradients, {"n_steps": 4}),
    (LayerGradientXActivation, {}),
    (LayerActivation, {}),
    (LayerConductance, {"n_steps": 4}),
    (InternalInfluence, {"n_steps": 4}),
]
LAYER_ROWS = [
    Row(
        method.__name__ + suffix,
        _on_layer(method, layer),
        fixed(**arguments),
        layer=layer,
        takes_target=method is not LayerActivation,
    )
    for layer, suffix in (("first", ""), ("vision", ", vision tower"))
    for method, arguments in _LAYER_METHODS
]
TOKEN_ROWS = [
    Row("LogitLens", _on_network(LogitLens)),
    Row("AttendedLens", _on_network(AttendedLens)),
    Row("LogitDecomposition", _on_network(LogitDecomposition)),
    Row("TokenCam", _on_network(TokenCam)),
    Row(
        "TokenCam, language model",
        lambda column: TokenCam(column.network, 0, "grad_cam", "decoder"),
    ),
    Row("AttentionMaps", _on_network(AttentionMaps)),
    Row(
        "AttentionMaps, vision tower",
        lambda column: AttentionMaps(column.network, tower="vision"),
    ),
    Row(
        "AttentionMaps, gradient",
        lambda column: AttentionMaps(column.network, mode="gradient"),
    ),
]
ROWS = {row.name: row for row in IMAGE_ROWS + LAYER_ROWS + TOKEN_ROWS}


@cache
def attributions(row: str, column_name: str, wrapped: bool) -> Tensor:
    """What a cell gives, run once."""
    return ROWS[row].run(column(column_name), wrapped)
