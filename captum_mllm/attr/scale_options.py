"""ScaleOptions, the checked options of MSEA: which scales, and how they are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_mllm.attr.resizing import scaled_size
from captum_mllm.models.layout import Size, size_of

#: The scales of MSEA by default.
SCALES = (0.5, 1.0, 1.5, 2.0)
Weights = Literal["uniform", "confidence"] | Sequence[float]
Normalize = Literal["balance", "max", "sum", "none"]


@dataclass(frozen=True)
class ScaleOptions:
    r"""
    How an input is seen at several scales, and how the maps are averaged; see :class:`MSEA`.

    Raises:
        ValueError: if an option is out of its range.
    """

    scales: Sequence[float] = SCALES
    weights: Weights = "uniform"
    normalize: Normalize = "balance"
    output_size: Size | Literal["largest"] | None = None
    interpolate_mode: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _factors(self.scales))
        if self.normalize not in get_args(Normalize):
            raise ValueError(
                f"normalize must be one of {', '.join(map(repr, get_args(Normalize)))}, got "
                f"{self.normalize!r}"
            )
        if self.interpolate_mode not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolate_mode must be 'bilinear' or 'bicubic', got {self.interpolate_mode!r}"
            )
        _check_size(self.output_size)
        _ = self.scale_weights

    def updated(self, **given: Any) -> ScaleOptions:
        r"""The same options, except for the given ones that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def scale_weights(self) -> Tensor | None:
        """One weight per scale, float64, the largest 1; None for confidence."""
        weights, number = self.weights, len(self.scales)
        if isinstance(weights, str):
            if weights not in ("uniform", "confidence"):
                raise ValueError(
                    "weights must be 'uniform', 'confidence' or a number for each scale, got "
                    f"{weights!r}"
                )
            return None if weights == "confidence" else torch.ones(number, dtype=torch.float64)
        try:
            values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            values = torch.empty(0)
        if values.shape != (number,):
            raise ValueError(
                f"weights must hold one number for each of the {number} scales, got {weights!r}"
            )
        if not bool(values.isfinite().all()) or bool((values < 0).any()) or not bool(values.any()):
            raise ValueError(
                f"weights must be finite, not negative, and not all 0, got {weights!r}"
            )
        return values / values.max()

    @property
    def order(self) -> list[int]:
        """The order in which the scales run: the largest first where it gives the output size."""
        order = list(range(len(self.scales)))
        if self.output_size == "largest":
            order.sort(key=lambda index: -self.scales[index])
        return order

    def check_inputs(self, inputs: Any) -> tuple[Tensor, ...]:
        r"""The inputs as a tuple of tensors.

        Raises:
            TypeError: for inputs that are not tensors.
            ValueError: if none is spatial, or a scale leaves one without a pixel.
        """
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"inputs must be a Tensor or a tuple of Tensors, got {type(tensor).__name__}"
                )
        if not any(tensor.dim() == 4 for tensor in tensors):
            raise ValueError(
                "no input is spatial: MSEA resizes tensors of shape (N, C, H, W), got "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in tensors) or 'no tensor'}"
            )
        for scale in self.scales:
            for tensor in tensors:
                size = scaled_size(tensor, scale)
                if size is not None and min(size) < 1:
                    height, width = size_of(tensor)
                    raise ValueError(
                        f"scale {scale:g} makes an input of {height} x {width} pixels {size[0]} x "
                        f"{size[1]}: every side needs at least 1 pixel; use a larger scale"
                    )
        return tensors


def check_probability(probability: Tensor | None, scale: float) -> None:
    r"""Refuse a probability of the target that cannot weigh a scale."""
    if probability is None:
        raise ValueError(
            "weights='confidence' needs the probability of the target: pass a target that selects "
            "one logit per example from an output (N, ..., classes), or give the forward function "
            "a method target_probability"
        )
    if not bool((probability >= 0).all()):
        raise ValueError(
            f"the probability of the target at scale {scale:g} is below 0 or not a number: "
            f"{probability.tolist()}"
        )


def _factors(scales: Any) -> tuple[float, ...]:
    try:
        # float alone would read digits out of a text.
        factors = tuple(float(scale * 1.0) for scale in scales)
    except (TypeError, ValueError):
        raise ValueError(f"scales must be a sequence of numbers, got {scales!r}") from None
    if not factors:
        raise ValueError("scales must hold at least one scale, got an empty sequence")
    for scale in factors:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scales must be finite and above 0, got {scale}")
    return factors


def _check_size(size: Any) -> None:
    if size is None or size == "largest":
        return
    is_size = isinstance(size, (tuple, list)) and len(size) == 2
    if not is_size or not all(isinstance(side, int) and side >= 1 for side in size):
        raise ValueError(
            f"output_size must be None, 'largest' or a height and width of at least 1, got {size!r}"
        )
