"""resize_inputs, resize_arguments and resize_seen: inputs, options and maps at another scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.models.layout import Layout, Size, size_of


def scaled_size(tensor: Tensor, scale: float) -> Size | None:
    """Height and width at a scale; None for a tensor that is not spatial."""
    if tensor.dim() != 4:
        return None
    height, width = size_of(tensor)
    return round(height * scale), round(width * scale)


@torch.no_grad()
def resize(tensor: Tensor, size: Size, mode: str) -> Tensor:
    """Resize the last two of four dimensions, in float32 at least; the dtype is kept."""
    if size_of(tensor) == size:
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
    kwargs = for_each_input(kwargs, len(inputs))
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
            if tensor.dim() != 4 or scaled_size(tensor, scale) == size_of(tensor)
            else go_along(each, tensor, scale, mode)
            for each, tensor in zip(values, inputs, strict=True)
        )
        resized[name] = values[0] if given_for_one else values
    return resized


def for_each_input(kwargs: dict[str, Any], count: int) -> dict[str, Any]:
    """The same arguments, where a window and a step that are given once are for each input."""
    found = dict(kwargs)
    shape, stride = kwargs.get("sliding_window_shapes"), kwargs.get("strides")
    if count > 1 and isinstance(shape, tuple) and all(isinstance(side, int) for side in shape):
        found["sliding_window_shapes"] = (shape,) * count
        if isinstance(stride, tuple) and all(isinstance(step, int) for step in stride):
            found["strides"] = (stride,) * count
    return found


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
    before, after = size_of(tensor), scaled_size(tensor, scale)
    assert after is not None
    height, width = (
        _side(given, old, new, "baselines")
        for given, old, new in zip(size_of(baseline), before, after, strict=True)
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
    before, after = size_of(tensor), scaled_size(tensor, scale)
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


def image_layouts(
    forward_func: Any, inputs: tuple[Tensor, ...], additional_forward_args: tuple[Any, ...]
) -> tuple[Layout | None, ...]:
    r"""Where the tokens of each input lie, if the forward function tells, as an MLLM does."""
    hook = getattr(forward_func, "layouts", None)
    if hook is None:
        return (None,) * len(inputs)
    layouts = tuple(hook(*inputs, *additional_forward_args))
    # Embeddings of words, which come after the images, lie nowhere.
    return (*layouts, *[None] * (len(inputs) - len(layouts)))


def seen_cells(layouts: Sequence[Layout | None], size: Size) -> Tensor:
    r"""The cells of a map that the model sees at one of the scales, bool (h, w)."""
    seen = torch.zeros(size, dtype=torch.bool)
    for layout in layouts:
        seen |= torch.ones_like(seen) if layout is None else layout.coverage(size)
    return seen


def resize_seen(
    maps: Tensor, layout: Layout | None, size: Size, mode: str
) -> tuple[Tensor, Tensor | None]:
    r"""Resize maps of an image of which the model may see only a part.

    Values outside of that part are not known, so it is kept out of the neighbouring cells.

    Args:
        maps (Tensor): maps of the whole image, (N, C, h, w), floating-point.
        layout (Layout, optional): where the tokens lie.
        size (tuple[int, int]): height and width of the result.
        mode (str): "bilinear" or "bicubic".

    Returns:
        tuple[Tensor, Tensor or None]: maps (N, C, *size), those given where they have that size,
        else 0 where the model sees nothing; and a bool mask (*size) of where it does, None where
        it sees all of the image.
    """
    if layout is None:
        return resize(maps, size, mode), None
    before, after = layout.coverage(size_of(maps)), layout.coverage(size)
    if before.all() and after.all():
        return resize(maps, size, mode), None
    if size_of(maps) == size:
        return maps, after.to(maps.device)
    known = before.to(maps)[None, None]
    share = resize(known, size, mode)
    seen = after.to(maps.device) & (share[0, 0] > 0)
    values = resize(maps * known, size, mode) / torch.where(share > 0, share, 1.0)
    return torch.where(seen, values, 0.0), seen


def check_on_input(
    attributions: Sequence[Tensor], inputs: Sequence[Tensor], layouts: Sequence[Layout | None]
) -> None:
    r"""Refuse attributions that are not those of whole inputs, one for each example.

    A vision tower takes the windows and tiles of an image as examples of their own, may see only
    a part of the image, and holds tokens instead of planes.

    Args:
        attributions (Sequence[Tensor]): what a method returned.
        inputs (Sequence[Tensor]): what it was given.
        layouts (Sequence[Layout or None]): where the tokens of each input lie.

    Raises:
        ValueError: if one of them is not.
    """
    pairs = list(zip(inputs, layouts))
    # Attributions of layers are as many as the layer's outputs.
    pairs = pairs if len(pairs) == len(attributions) else pairs[:1] * len(attributions)
    for attribution, (given, layout) in zip(attributions, pairs, strict=True):
        # One row for all examples is Captum's answer where the forward function sums them up.
        fits = attribution.dim() == 0 or len(attribution) in (1, len(given))
        if layout is not None:
            fits = fits and attribution.dim() == 4
            fits = fits and (
                size_of(attribution) == size_of(given) or bool(layout.coverage().all())
            )
        if not fits:
            raise ValueError(
                f"attributions have shape {tuple(attribution.shape)} for an input of shape "
                f"{tuple(given.shape)}: only maps of 4 dimensions are resized and averaged, with a "
                "row for each example, and of a multimodal model those of the whole image; for "
                "its layers take TokenCam, which puts windows, tiles and tokens where they lie"
            )
