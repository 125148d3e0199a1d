"""The weighted mean of attributions found at several scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm.attr.resizing import Size, plane, resize

Attributions = Tensor | tuple[Tensor, ...]


class ScaleAttribution(NamedTuple):
    r"""
    What the wrapped method found at one scale.

    Args:
        scale (float): The scale, relative to the input as given.
        attributions (Tensor or tuple[Tensor, ...]): Attributions as the method gave them at this
            scale, at their own size, detached.
        probability (Tensor or None): Probability that the model gives the target at this scale,
            one per example, in [0, 1]; None where it was not asked for or is not defined.
    """

    scale: float
    attributions: Attributions
    probability: Tensor | None


class MapMean:
    """Weighted mean of the scales' maps at the output size, one scale at a time."""

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        output_size: Size | str | None,
        mode: str,
        normalize: str | None,
    ) -> None:
        self.inputs = inputs
        self.output_size = output_size
        self.mode = mode
        self.normalize = normalize
        self.is_tuple = False
        self.dtypes: list[torch.dtype] = []
        self.sizes: list[Size | None] = []
        self.means: list[Tensor] = []
        self.total = torch.zeros(1, dtype=torch.float64)
        self.count = 0

    def add(self, found: ScaleAttribution, weight: Tensor) -> None:
        attributions = format_tensor_into_tuples(found.attributions)
        if self.count == 0:
            self.is_tuple = isinstance(found.attributions, tuple)
            self.dtypes = [attribution.dtype for attribution in attributions]
            self.sizes = self._sizes(attributions)
        elif len(attributions) != len(self.means):
            raise ValueError(
                f"got {len(attributions)} attributions at scale {found.scale:g} and "
                f"{len(self.means)} at another: they cannot be averaged; see combine=False"
            )
        values = [
            self._at_output_size(attribution, size)
            for attribution, size in zip(attributions, self.sizes, strict=True)
        ]
        # On the CPU, as not all devices have float64.
        weight = weight.cpu().double().reshape(-1)
        self.count += 1
        self.total = self.total + weight
        if self.count == 1:
            self.means = values
        for mean, value in zip(self.means, values, strict=True):
            _validate_fit(value, mean, weight, found.scale)
        if self.count > 1:
            # While all weights are zero, the plain mean; the first that is not replaces it.
            step = torch.where(self.total > 0, weight / self.total, 1 / self.count)
            self.means = [
                torch.lerp(mean, value, _per_example(step.to(value), value))
                for mean, value in zip(self.means, values, strict=True)
            ]

    def result(self) -> Attributions:
        # Maps of whole numbers have a mean that is none.
        cast = [
            mean.to(dtype) if dtype.is_floating_point else mean
            for mean, dtype in zip(self.means, self.dtypes, strict=True)
        ]
        return format_output(self.is_tuple, tuple(cast))

    def _sizes(self, attributions: tuple[Tensor, ...]) -> list[Size | None]:
        spatial = [plane(tensor) if tensor.dim() == 4 else None for tensor in self.inputs]
        first = next(size for size in spatial if size is not None)
        if len(attributions) != len(spatial):
            spatial = [first] * len(attributions)
        sizes: list[Size | None] = []
        for attribution, own in zip(attributions, spatial, strict=True):
            if attribution.dim() != 4:
                sizes.append(None)
            elif self.output_size is None:
                sizes.append(own or first)
            elif isinstance(self.output_size, str):
                sizes.append(plane(attribution))
            else:
                sizes.append(self.output_size)
        return sizes

    def _at_output_size(self, attribution: Tensor, size: Size | None) -> Tensor:
        value = attribution.to(torch.promote_types(attribution.dtype, torch.float32))
        if size is not None and attribution.dim() == 4:
            value = resize(value, size, self.mode)
        if self.normalize is None or value.numel() == 0:
            return value
        magnitude = value.abs().reshape(len(value) if value.dim() else 1, -1)
        extent = magnitude.amax(dim=1) if self.normalize == "max" else magnitude.sum(dim=1)
        return value / _per_example(torch.where(extent > 0, extent, 1.0), value)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,), shaped to broadcast along dimension 0."""
    return values.reshape(-1, *[1] * (like.dim() - 1)) if like.dim() else values.reshape(())


def _validate_fit(value: Tensor, mean: Tensor, weight: Tensor, scale: float) -> None:
    if value.shape != mean.shape:
        raise ValueError(
            f"attributions have shape {tuple(value.shape)} at scale {scale:g} and "
            f"{tuple(mean.shape)} at another: only maps of 4 dimensions are resized and averaged; "
            "reshape tokens to a grid (N, C, h, w), or see combine=False"
        )
    if len(weight) not in (1, len(value) if value.dim() else 1):
        raise ValueError(
            f"the target has {len(weight)} probabilities, but attributions of shape "
            f"{tuple(value.shape)} do not have as many rows; give one weight per scale instead"
        )
