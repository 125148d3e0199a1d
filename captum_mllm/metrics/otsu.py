"""Otsu's threshold of many maps at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import check_maps
from captum_mllm.metrics.precision import in_double, safe_ratio

LEVELS = 256

# Largest stack of maps, in cells and in maps.
_CELLS, _ROWS = 1 << 24, 1 << 16


def otsu_threshold(maps: Tensor) -> Tensor:
    r"""
    Otsu's threshold of each map: the level that parts its cells into two classes with the largest
    variance between them.

    With :math:`n` cells, :math:`n_k` of them at or below level :math:`k`, and :math:`s`,
    :math:`s_k` the sums of their levels, it is the lowest :math:`k` with the largest

    .. math::
        \frac{(s_k n - s n_k)^2}{n_k (n - n_k)}

    which is computed in integers but for the last division, so that ties are ties. What is
    *above* the threshold is foreground. A constant map is its own threshold, so that it has no
    foreground.

    Source: "A Threshold Selection Method from Gray-Level Histograms" (Otsu, IEEE Transactions on
    Systems, Man, and Cybernetics, 1979). Equals ``skimage.filters.threshold_otsu``, but for ties,
    which there the rounding of the variances decides.

    Args:
        maps (Tensor): Of shape (..., h, w). Levels of dtype uint8; or of a floating-point dtype,
            for which the range of each map is cut into 256 equal bins.

    Returns:
        Tensor: Of shape (...) and the dtype of ``maps`` (float32 for half precision): a level, or
        the centre of a bin.

    Raises:
        TypeError: If ``maps`` has another dtype.
        ValueError: If it has no cells, or values that are not finite.

    Examples::

        >>> import torch
        >>> otsu_threshold(torch.tensor([[[10, 10, 12, 200]], [[7, 7, 7, 7]]], dtype=torch.uint8))
        tensor([12,  7], dtype=torch.uint8)
    """
    maps = check_maps(maps)
    planes = maps.flatten(-2).reshape(-1, maps.shape[-2] * maps.shape[-1])
    if planes.dtype == torch.uint8:
        return _best_bin(planes).to(torch.uint8).reshape(maps.shape[:-2])
    if not len(planes):
        return planes.new_zeros(maps.shape[:-2])
    values = in_double(planes)
    low, high = values.aminmax(dim=-1, keepdim=True)
    width = high - low
    # Bins are closed below and open above, but for the last.
    bins = (safe_ratio(values - low, width) * LEVELS).floor().clamp_max(LEVELS - 1)
    best = _best_bin(bins.to(torch.uint8))
    centers = low[:, 0] + width[:, 0] * (best + 0.5) / LEVELS
    return centers.to(maps.dtype).reshape(maps.shape[:-2])


def grey_levels(maps: Tensor, normalize: Literal["map", "caption"] | None = None) -> Tensor:
    r"""
    Maps as 256 grey levels, :math:`\lfloor 255 x \rfloor`.

    Args:
        maps (Tensor): Of shape (..., h, w) and a floating-point dtype; uint8 is returned as it is.
        normalize (str, optional): What is mapped to [0, 1] by its smallest and largest value
            first: ``"map"``, each map by itself, or ``"caption"``, all maps of a caption
            (..., T, h, w) together, which keeps how they compare. Constants become 0. Without
            it, the values must lie in [0, 1].
            Default: None

    Returns:
        Tensor: Of dtype uint8 and the same shape.

    Raises:
        TypeError: If ``maps`` has another dtype.
        ValueError: If there are values that are not finite or, without ``normalize``, lie outside
            [0, 1].

    Examples::

        >>> import torch
        >>> grey_levels(torch.tensor([[-1.0, 0.0, 1.0]]), normalize="map")
        tensor([[  0, 127, 255]], dtype=torch.uint8)
    """
    maps = check_maps(maps)
    if maps.dtype == torch.uint8 or not maps.numel():
        return maps.to(torch.uint8)
    if normalize not in ("map", "caption", None):
        raise ValueError(f'normalize must be "map", "caption" or None, got {normalize!r}')
    if normalize is None:
        if maps.min() < 0 or maps.max() > 1:
            raise ValueError(
                f"maps must lie in [0, 1], got {maps.min():.4g} to {maps.max():.4g}; see normalize"
            )
        return (maps * 255).to(torch.uint8)
    dims = (-2, -1) if normalize == "map" else tuple(range(-min(3, maps.dim()), 0))
    values = in_double(maps)
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    return (safe_ratio(values - low, high - low) * 255).to(torch.uint8)


def _best_bin(bins: Tensor) -> Tensor:
    """The lowest bin with the largest variance between the classes, for (N, cells) of uint8."""
    rows = max(1, min(_CELLS // bins.shape[1], _ROWS))
    return torch.cat([_best_of(_histograms(chunk)) for chunk in bins.split(rows)])


def _histograms(bins: Tensor) -> Tensor:
    """Counts of each level, (N, 256)."""
    offsets = torch.arange(len(bins), dtype=torch.int32, device=bins.device)[:, None] * LEVELS
    counts = torch.bincount((bins + offsets).flatten(), minlength=len(bins) * LEVELS)
    return counts.reshape(len(bins), LEVELS)


def _best_of(counts: Tensor) -> Tensor:
    levels = torch.arange(LEVELS, device=counts.device)
    below, sums = counts.cumsum(-1), (counts * levels).cumsum(-1)
    cells, total = below[:, -1:], sums[:, -1:]
    split = in_double(below) * in_double(cells - below)
    variance = safe_ratio(in_double(sums * cells - total * below).square(), split)
    best = variance.argmax(-1)
    # Without two levels there is nothing to part.
    constant = total[:, 0] // cells[:, 0].clamp_min(1)
    return torch.where(variance.amax(-1) > 0, best, constant)
