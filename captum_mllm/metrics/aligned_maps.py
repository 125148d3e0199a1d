"""Maps and masks at one size, checked, and the precision in which scores are summed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_double(values: Tensor) -> Tensor:
    r"""
    Values in float64, or in float32 on a device that has no float64 (MPS).

    Args:
        values (Tensor): Any real or boolean tensor.

    Returns:
        Tensor: The same values.
    """
    return values.to(double_dtype(values.device))


def double_dtype(device: torch.device) -> torch.dtype:
    r"""
    The most precise dtype of a device.

    Args:
        device (torch.device): The device.

    Returns:
        torch.dtype: float64, or float32 on MPS.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    r"""
    Quotient that is 0 where the denominator is 0.

    Args:
        numerator (Tensor): Of a floating-point dtype.
        denominator (Tensor): Of a shape that broadcasts with it.

    Returns:
        Tensor: The quotient.
    """
    return torch.where(
        denominator == 0, 0, numerator / torch.where(denominator == 0, 1, denominator)
    )


Size = tuple[int, int]

_HALFWAY = 1e-6


def check_maps(maps: Tensor, name: str = "maps") -> Tensor:
    r"""
    Refuse what is not a stack of finite maps.

    Args:
        maps (Tensor): Of shape (..., h, w), uint8 or of a floating-point dtype.
        name (str, optional): What to call it in the message.
            Default: "maps"

    Returns:
        Tensor: ``maps``, detached; half precision as float32.

    Raises:
        TypeError: If it is not a tensor of one of these dtypes.
        ValueError: If it has fewer than two dimensions, no cells, or values that are not finite.
    """
    if not isinstance(maps, Tensor) or not (maps.dtype == torch.uint8 or maps.is_floating_point()):
        given = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"{name} must be a floating-point or uint8 Tensor, got {given}")
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ValueError(
            f"{name} must have shape (..., h, w) with at least one cell, got {tuple(maps.shape)}"
        )
    maps = maps.detach()
    if maps.dtype == torch.uint8:
        return maps
    if maps.numel() and not torch.stack(maps.aminmax()).isfinite().all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity; a map that could not be computed has no "
            "score, so leave its example out"
        )
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def check_masks(masks: Tensor, name: str = "masks") -> Tensor:
    r"""
    Refuse what is not a stack of binary masks.

    Args:
        masks (Tensor): Of shape (..., H, W), bool, or of another dtype with values 0 and 1.
        name (str, optional): What to call it in the message.
            Default: "masks"

    Returns:
        Tensor: The masks as bool.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it has fewer than two dimensions, no cells, or values other than 0 and 1.
    """
    if not isinstance(masks, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(masks).__name__}")
    if masks.dim() < 2 or 0 in masks.shape[-2:]:
        raise ValueError(
            f"{name} must have shape (..., H, W) with at least one cell, got {tuple(masks.shape)}"
        )
    if masks.dtype == torch.bool:
        return masks
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(
            f"{name} must be bool or hold 0 and 1 alone; for label images compare with the label "
            "first, as in labels == 3"
        )
    return masks == 1


def align(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    Maps at the size of the masks, and the masks as bool.

    Args:
        maps (Tensor): Of shape (..., h, w); see :func:`check_maps`.
        masks (Tensor): Of shape (..., H, W); see :func:`check_masks`. The leading dimensions are
            as many as those of ``maps``, each of the same size or 1.

    Returns:
        tuple[Tensor, Tensor]: Maps of shape (..., H, W) and masks, not yet broadcast.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If one of them has wrong values, or they do not fit together.
    """
    maps, masks = check_maps(maps), check_masks(masks)
    leading, expected = maps.shape[:-2], masks.shape[:-2]
    # (B, 1) and (B,) would broadcast to all pairs without a word.
    fits = len(leading) == len(expected) and all(
        have == want or 1 in (have, want) for have, want in zip(leading, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} and masks of shape {tuple(masks.shape)} do not fit "
            "together: the dimensions before height and width must be as many and of the same "
            "sizes; see Tensor.squeeze(1) for maps (B, 1, h, w)"
        )
    if maps.device != masks.device:
        raise ValueError(
            f"maps and masks must be on one device, got {maps.device} and {masks.device}"
        )
    height, width = masks.shape[-2:]
    return resize(maps, (height, width)), masks


def resize(maps: Tensor, size: Size, antialias: bool = True) -> Tensor:
    r"""
    Bilinear resizing that keeps to the range of each map: a constant map stays that constant.

    Args:
        maps (Tensor): Of shape (..., h, w), uint8 or of a floating-point dtype.
        size (tuple[int, int]): Height and width of the result, in cells.
        antialias (bool, optional): Whether to smooth where the result is smaller.
            Default: True

    Returns:
        Tensor: Of shape (..., *size) and the dtype of ``maps``; uint8 is rounded to the nearest
        level, halves up.
    """
    if maps.shape[-2:] == size or maps.numel() == 0:
        return maps if maps.numel() else maps.new_zeros(*maps.shape[:-2], *size)
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    is_level = planes.dtype == torch.uint8
    values = in_double(planes) if is_level else planes
    resized = F.interpolate(
        values, size=size, mode="bilinear", align_corners=False, antialias=antialias
    )
    if is_level:
        # Halfway values occur often; all are to go up, whatever the sum was rounded to.
        resized = resized.add_(0.5 + _HALFWAY).to(torch.uint8)
    else:
        # Rounding would make a constant map uneven, and give it a maximum.
        resized = resized.clamp_(
            values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
        )
    return resized.reshape(*maps.shape[:-2], *size)


def positive_mass(maps: Tensor) -> Tensor:
    r"""
    The positive part of maps, each divided by its largest value so that no sum can overflow.

    Args:
        maps (Tensor): Of shape (..., h, w), finite.

    Returns:
        Tensor: In [0, 1], in double precision; 0 for a map without a positive value.
    """
    positive = in_double(maps).clamp_min(0)
    largest = positive.amax((-2, -1), keepdim=True)
    return positive / torch.where(largest > 0, largest, 1)
