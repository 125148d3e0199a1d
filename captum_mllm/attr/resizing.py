"""Resizing the inputs of an attribution method, and the arguments that lie on their pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def plane(tensor: Tensor) -> Size:
    return tensor.shape[-2], tensor.shape[-1]


def scaled_size(tensor: Tensor, scale: float) -> Size | None:
    """Height and width at a scale; None for a tensor that is not spatial."""
    if tensor.dim() != 4:
        return None
    height, width = plane(tensor)
    return round(height * scale), round(width * scale)


@torch.no_grad()
def resize(tensor: Tensor, size: Size, mode: str) -> Tensor:
    """Resize the last two of four dimensions, in float32 at least; the dtype is kept."""
    if plane(tensor) == size:
        return tensor
    values = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    resized = F.interpolate(values, size, mode=mode, align_corners=False, antialias=True)
    if mode == "bicubic":
        lowest = values.amin(dim=(-2, -1), keepdim=True)
        resized = resized.clamp(lowest, values.amax(dim=(-2, -1), keepdim=True))
    return (resized if tensor.is_floating_point() else resized.round()).to(tensor.dtype)


def resize_inputs(tensors: tuple[Tensor, ...], scale: float, mode: str) -> tuple[Tensor, ...]:
    sizes = [scaled_size(tensor, scale) for tensor in tensors]
    return tuple(
        tensor if size is None else resize(tensor, size, mode).requires_grad_(tensor.requires_grad)
        for tensor, size in zip(tensors, sizes, strict=True)
    )


def resize_arguments(
    kwargs: dict[str, Any], inputs: tuple[Tensor, ...], scale: float, mode: str
) -> dict[str, Any]:
    """The wrapped method's arguments, those that lie on the pixels at this scale."""
    resized = dict(kwargs)
    for name, go_along in ON_PIXELS.items():
        value = kwargs.get(name)
        if value is None:
            continue
        given_for_one = not isinstance(value, tuple)
        if name == "sliding_window_shapes":
            given_for_one = all(isinstance(side, int) for side in value)
        elif name == "strides" and len(inputs) == 1:
            given_for_one = given_for_one or len(value) != 1
        values = (value,) if given_for_one else value
        # The wrapped method says what is wrong with another number of values.
        if len(values) != len(inputs):
            continue
        values = tuple(
            each
            if tensor.dim() != 4 or scaled_size(tensor, scale) == plane(tensor)
            else go_along(each, tensor, scale, mode)
            for each, tensor in zip(values, inputs, strict=True)
        )
        resized[name] = values[0] if given_for_one else values
    return resized


def _side(given: int, before: int, after: int, name: str) -> int:
    """The new length of an axis of a tensor that goes along with an input."""
    if given == before:
        return after
    if given == 1:
        return 1
    raise ValueError(
        f"{name} must be as high and wide as its input, or 1: a side has {given} pixels, "
        f"the input's {before}"
    )


def _resize_baseline(baseline: Any, tensor: Tensor, scale: float, mode: str) -> Any:
    if not isinstance(baseline, Tensor) or baseline.dim() != 4:
        return baseline
    before, after = plane(tensor), scaled_size(tensor, scale)
    assert after is not None
    height, width = (
        _side(given, old, new, "baselines")
        for given, old, new in zip(plane(baseline), before, after, strict=True)
    )
    return resize(baseline, (height, width), mode)


def resample(mask: Tensor, axis: int, side: int) -> Tensor:
    """A mask with ``side`` places along an axis, each with the value nearest to its centre."""
    before = mask.shape[axis]
    centres = (torch.arange(side, device=mask.device) + 0.5) * (before / side)
    return mask.index_select(axis, centres.long().clamp_(max=before - 1))


def _resize_feature_mask(mask: Any, tensor: Tensor, scale: float, mode: str) -> Any:
    if not isinstance(mask, Tensor):
        return mask
    before, after = plane(tensor), scaled_size(tensor, scale)
    assert after is not None
    resized = mask
    for axis in (-1, -2)[: mask.dim()]:
        side = _side(mask.shape[axis], before[axis], after[axis], "feature_mask")
        resized = resample(resized, axis, side)
    segments = mask.unique()
    lost = segments[~torch.isin(segments, resized.unique())].tolist()
    if lost:
        raise ValueError(
            f"at scale {scale:g} ({after[0]} x {after[1]} pixels) no pixel of feature_mask is left "
            f"for segments {lost[:10]}{' and others' if len(lost) > 10 else ''}; leave this scale "
            "out, or merge the smallest segments"
        )
    return resized


def _resize_window(shape: Any, tensor: Tensor, scale: float, mode: str) -> Any:
    size = scaled_size(tensor, scale)
    if not isinstance(shape, tuple) or len(shape) != 3 or size is None:
        return shape
    sides = (
        min(max(round(side * scale), 1), limit) for side, limit in zip(shape[1:], size, strict=True)
    )
    return (shape[0], *sides)


def _resize_stride(stride: Any, tensor: Tensor, scale: float, mode: str) -> Any:
    # One number holds for the channels as well, which are not resized.
    as_tuple = (stride, stride, stride) if isinstance(stride, int) else stride
    return _resize_window(as_tuple, tensor, scale, mode)


#: How the arguments of a method that lie on the pixels go along with an input.
ON_PIXELS: dict[str, Callable[[Any, Tensor, float, str], Any]] = {
    "baselines": _resize_baseline,
    "feature_mask": _resize_feature_mask,
    "sliding_window_shapes": _resize_window,
    "strides": _resize_stride,
}
