"""The arguments of MSEA, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mllm.attr.resizing import plane, scaled_size


def check_inputs(inputs: Any) -> tuple[Tensor, ...]:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"inputs must be a Tensor or a tuple of Tensors, got {type(tensor).__name__}"
            )
    if not any(tensor.dim() == 4 for tensor in tensors):
        raise ValueError(
            "no input is spatial: MSEA resizes tensors of shape (N, C, H, W), got "
            f"{', '.join(str(tuple(tensor.shape)) for tensor in tensors) or 'none'}"
        )
    return tensors


def check_scales(scales: Sequence[float], inputs: tuple[Tensor, ...]) -> list[float]:
    try:
        # float alone would read digits out of a text.
        factors = [float(scale * 1.0) for scale in scales]
    except (TypeError, ValueError):
        raise ValueError(f"scales must be a sequence of numbers, got {scales!r}") from None
    if not factors:
        raise ValueError("scales must hold at least one scale, got none")
    for scale in factors:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scales must be finite and above 0, got {scale}")
        for tensor in inputs:
            size = scaled_size(tensor, scale)
            if size is not None and min(size) < 1:
                height, width = plane(tensor)
                raise ValueError(
                    f"scale {scale:g} makes an input of {height} x {width} pixels {size[0]} x "
                    f"{size[1]}: every side needs at least 1 pixel; use a larger scale"
                )
    return factors


def check_weights(weights: str | Sequence[float], number: int) -> Tensor | None:
    """One weight per scale, float64, the largest 1; None for confidence."""
    if isinstance(weights, str):
        if weights not in ("uniform", "confidence"):
            raise ValueError(
                "weights must be 'uniform', 'confidence' or a number for each scale, got "
                f"{weights!r}"
            )
        if weights == "confidence":
            return None
        weights = [1.0] * number
    try:
        values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.shape != (number,):
        raise ValueError(
            f"weights must hold one number for each of the {number} scales, got {weights!r}"
        )
    if not bool(values.isfinite().all()) or bool((values < 0).any()) or not bool(values.any()):
        raise ValueError(f"weights must be finite, not negative, and not all 0, got {weights!r}")
    return values / values.max()


def check_probability(probability: Tensor | None, scale: float) -> None:
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


def check_options(
    method: str, normalize: Any, output_size: Any, interpolate_mode: Any, kwargs: Mapping[str, Any]
) -> None:
    if kwargs.get("return_convergence_delta"):
        raise ValueError(
            "MSEA has no convergence delta; leave return_convergence_delta out, or ask "
            f"{method} itself for it"
        )
    if normalize not in (None, "max", "sum"):
        raise ValueError(f"normalize must be None, 'max' or 'sum', got {normalize!r}")
    if interpolate_mode not in ("bilinear", "bicubic"):
        raise ValueError(
            f"interpolate_mode must be 'bilinear' or 'bicubic', got {interpolate_mode!r}"
        )
    if output_size is None or output_size == "largest":
        return
    is_size = isinstance(output_size, (tuple, list)) and len(output_size) == 2
    if not is_size or not all(isinstance(side, int) and side >= 1 for side in output_size):
        raise ValueError(
            "output_size must be None, 'largest' or a height and width of at least 1, got "
            f"{output_size!r}"
        )
