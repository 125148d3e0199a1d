"""How well maps point at what a mask marks, and Otsu's threshold of many maps at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import (
    align,
    check_maps,
    check_masks,
    double_dtype,
    in_double,
    positive_mass,
    safe_ratio,
)

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

    which is computed in integers except for the last division, so that ties are ties. What is
    *above* the threshold is foreground. A constant map is its own threshold, so that it has no
    foreground.

    Source: "A Threshold Selection Method from Gray-Level Histograms" (Otsu, IEEE Transactions on
    Systems, Man, and Cybernetics, 1979). Equals ``skimage.filters.threshold_otsu`` except at ties,
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
    # Bins are closed below and open above, except the last.
    bins = (safe_ratio(values - low, width) * LEVELS).floor().clamp_max(LEVELS - 1)
    best = _best_bin(bins.to(torch.uint8))
    centers = low[:, 0] + width[:, 0] * (best + 0.5) / LEVELS
    return centers.to(maps.dtype).reshape(maps.shape[:-2])


def grey_levels(maps: Tensor, normalize: Literal["map", "caption"] | None = None) -> Tensor:
    r"""
    Maps as 256 grey levels, :math:`\lfloor 255 x \rfloor`.

    Args:
        maps (Tensor): Of shape (..., h, w) and a floating-point dtype; uint8 is returned unchanged.
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
    return torch.cat([best_level(_histograms(chunk)) for chunk in bins.split(rows)])


def _histograms(bins: Tensor) -> Tensor:
    """Counts of each level, (N, 256)."""
    offsets = torch.arange(len(bins), dtype=torch.int32, device=bins.device)[:, None] * LEVELS
    counts = torch.bincount((bins + offsets).flatten(), minlength=len(bins) * LEVELS)
    return counts.reshape(len(bins), LEVELS)


def best_level(counts: Tensor) -> Tensor:
    r"""
    Otsu's threshold by how often each level occurs.

    Args:
        counts (Tensor): Of shape (N, 256), integers.

    Returns:
        Tensor: Of shape (N,), integers.
    """
    levels = torch.arange(LEVELS, device=counts.device)
    below, sums = counts.cumsum(-1), (counts * levels).cumsum(-1)
    cells, total = below[:, -1:], sums[:, -1:]
    split = in_double(below) * in_double(cells - below)
    variance = safe_ratio(in_double(sums * cells - total * below).square(), split)
    best = variance.argmax(-1)
    # Without two levels there is nothing to part.
    constant = total[:, 0] // cells[:, 0].clamp_min(1)
    return torch.where(variance.amax(-1) > 0, best, constant)


def intersection_over_union(maps: Tensor, masks: Tensor) -> Tensor:
    r"""
    Intersection over union of each map's foreground, cut out by Otsu's threshold, with its mask.

    Args:
        maps (Tensor): Of shape (..., h, w), of a floating-point dtype or uint8. Resized to the
            masks, bilinear.
        masks (Tensor): What the maps should mark, of shape (..., H, W), bool or 0 and 1. Leading
            dimensions as many as those of ``maps``, each of the same size or 1.

    Returns:
        Tensor: One score per map in [0, 1], of shape (...), in float64 (float32 on MPS). 0 for a
        constant map, which has no foreground, and for an empty mask.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If there are values that are not finite, masks that are not binary, or shapes
            that do not fit together.

    Examples::

        >>> import torch
        >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> mask[:, :2, :2] = True
        >>> float(intersection_over_union(mask.float(), mask))
        1.0
        >>> float(intersection_over_union(torch.ones(1, 4, 4), mask))
        0.0
    """
    maps, masks = align(maps, masks)
    foreground = maps > otsu_threshold(maps)[..., None, None]
    both = (foreground & masks).sum((-2, -1))
    either = (foreground | masks).sum((-2, -1))
    return safe_ratio(in_double(both), in_double(either))


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    r"""
    Whether the largest value of each map lies in its mask.

    Where several cells share the largest value, the share of them in the mask: what picking one
    of them at random would score on average. A constant map points nowhere and scores 0.

    Source: "Top-down Neural Attention by Excitation Backprop" (Zhang et al., ECCV 2016), without
    its tolerance in pixels.

    Args:
        maps (Tensor): Of shape (..., h, w), of a floating-point dtype or uint8. Resized to the
            masks, bilinear.
        masks (Tensor): What the maps should mark, of shape (..., H, W), bool or 0 and 1. Leading
            dimensions as many as those of ``maps``, each of the same size or 1.

    Returns:
        Tensor: One score per map in [0, 1], of shape (...), in float64 (float32 on MPS). 0 for a
        constant map (one of a single cell is) and for an empty mask.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If there are values that are not finite, masks that are not binary, or shapes
            that do not fit together.

    Examples::

        >>> import torch
        >>> mask = torch.tensor([[[True, False, False]]])
        >>> maps = torch.tensor([[[0.9, 0.1, 0.0]], [[0.1, 0.9, 0.0]], [[1.0, 1.0, 1.0]]])
        >>> pointing_game(maps, mask)
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    maps, masks = align(maps, masks)
    largest = maps.amax((-2, -1), keepdim=True)
    varied = largest > maps.amin((-2, -1), keepdim=True)
    peaks = (maps == largest) & varied
    hits = (peaks & masks).sum((-2, -1))
    return safe_ratio(in_double(hits), in_double(peaks.sum((-2, -1))))


def relevance_mass(maps: Tensor, masks: Tensor) -> Tensor:
    r"""
    Relevance mass accuracy: the share of each map's positive values that lies in its mask.

    Source: "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations" (Arras, Osman, Samek, Information Fusion 2022).

    Args:
        maps (Tensor): Of shape (..., h, w), of a floating-point dtype or uint8. Negative values
            count as 0. Resized to the masks, bilinear.
        masks (Tensor): What the maps should mark, of shape (..., H, W), bool or 0 and 1. Leading
            dimensions as many as those of ``maps``, each of the same size or 1: maps
            (T, 1, h, w) and masks (1, K, H, W) give the mass of T maps on K objects.

    Returns:
        Tensor: One score per map in [0, 1], of shape (...), in float64 (float32 on MPS). The
        mask's share of the image for a constant map above 0; 0 for a map without positive
        values and for an empty mask.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If there are values that are not finite, masks that are not binary, or shapes
            that do not fit together.

    Examples::

        >>> import torch
        >>> relevance_mass(torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[1, 0, 0]]))
        tensor(0.7500, dtype=torch.float64)
    """
    maps, masks = align(maps, masks)
    dtype = double_dtype(maps.device)
    # A sum of narrower values does not overflow.
    mass = positive_mass(maps) if maps.dtype == dtype else maps.clamp_min(0)
    inside = torch.where(masks, mass, 0).sum((-2, -1), dtype=dtype)
    return safe_ratio(inside, mass.sum((-2, -1), dtype=dtype))


def relevance_rank(maps: Tensor, masks: Tensor) -> Tensor:
    r"""
    Relevance rank accuracy: the share of each map's K largest values that lies in its mask of K
    cells.

    Where cells share the K-th largest value, they count in proportion, so that the order in which
    they are stored does not matter and a constant map scores what chance does.

    Source: as for :func:`relevance_mass`.

    Args:
        maps (Tensor): Of shape (..., h, w), of a floating-point dtype or uint8. Resized to the
            masks, bilinear.
        masks (Tensor): What the maps should mark, of shape (..., H, W), bool or 0 and 1. Leading
            dimensions as many as those of ``maps``, each of the same size or 1.

    Returns:
        Tensor: One score per map in [0, 1], of shape (...), in float64 (float32 on MPS). The
        mask's share of the image for a constant map; 0 for an empty mask.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If there are values that are not finite, masks that are not binary, or shapes
            that do not fit together.

    Examples::

        >>> import torch
        >>> relevance_rank(torch.tensor([[0.9, 0.2, 0.8, 0.1]]), torch.tensor([[1, 1, 0, 0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    maps, masks = align(maps, masks)
    size = masks.sum((-2, -1))
    smallest = _largest_but(maps.flatten(-2), (size - 1).clamp_min(0))[..., None, None]
    above, tied = maps > smallest, maps == smallest
    places_left = size - above.sum((-2, -1))
    share = safe_ratio(in_double(places_left), in_double(tied.sum((-2, -1))))
    hits = in_double((above & masks).sum((-2, -1)))
    hits = hits + share * in_double((tied & masks).sum((-2, -1)))
    return safe_ratio(hits, in_double(size))


def _largest_but(values: Tensor, places: Tensor) -> Tensor:
    """The value of each row (..., n) that so many others (...) exceed or equal."""
    leading = torch.broadcast_shapes(values.shape[:-1], places.shape)
    if not places.numel():
        return values.new_zeros(leading)
    if values.device.type == "cpu":
        # Parts the values at the places alone, where topk would order all before them.
        ascending = values.shape[-1] - 1 - places
        parted = np.partition(values.numpy(), ascending.unique().numpy(), axis=-1)
        values, places = torch.from_numpy(parted), ascending
    else:
        values = values.topk(int(places.max()) + 1, dim=-1).values
    return values.expand(*leading, -1).gather(-1, places.expand(leading)[..., None])[..., 0]


def interference_leakage(
    maps: Tensor, earlier_masks: Tensor, masks: Tensor | None = None
) -> Tensor:
    r"""
    The share of each map's positive values that lies on objects named before the explained word.

    Earlier words leave their traces in the map of a token. A map that is free of them has
    no more on these objects than on any other place that the word does not speak of.

    Args:
        maps (Tensor): Maps of words, of shape (..., h, w), of a floating-point dtype or uint8.
            Negative values count as 0. Resized to the masks, bilinear.
        earlier_masks (Tensor): Of shape (..., H, W), bool or 0 and 1: the union of the objects
            that were named before each word. Leading dimensions as many as those of ``maps``,
            each of the same size or 1.
        masks (Tensor, optional): The object that each word speaks of, of a shape that fits
            ``earlier_masks``. Values on it are not leakage, even if it was named before or
            overlaps with earlier objects.
            Default: None

    Returns:
        Tensor: One share per map in [0, 1], of shape (...), in float64 (float32 on MPS); the lower
        the better. 0 where nothing was named before, and for a map without positive values.

    Raises:
        TypeError: If one of them has a wrong type.
        ValueError: If there are values that are not finite, masks that are not binary, or shapes
            that do not fit together.

    Examples::

        >>> import torch
        >>> map_of_word = torch.tensor([[1.0, 3.0, 0.0]])
        >>> interference_leakage(map_of_word, torch.tensor([[1, 0, 0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    earlier = check_masks(earlier_masks, "earlier_masks")
    if masks is not None:
        own = check_masks(masks)
        if own.dim() != earlier.dim() or own.shape[-2:] != earlier.shape[-2:]:
            raise ValueError(
                f"masks of shape {tuple(own.shape)} and earlier_masks of shape "
                f"{tuple(earlier.shape)} must have the same dimensions"
            )
        earlier = earlier & ~own
    return relevance_mass(maps, earlier)
