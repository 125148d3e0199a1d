"""Rank Gaussian filter: a denoising filter that adapts to the spread within each window."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest tensor of windows, in elements.
_WINDOW_ELEMENTS = 1 << 22
# The negative logarithm of a weight, 1e-26, that vanishes beside the median's.
_NEGLIGIBLE = 60.0


def rank_gaussian_filter(maps: Tensor, kernel_size: int = 3) -> Tensor:
    r"""
    Rank Gaussian filter of attribution maps, as in TAM.

    The :math:`K = k^2` values of the window around each cell are sorted,
    :math:`x_{-\lfloor K/2 \rfloor} \le \dots \le x_{\lfloor K/2 \rfloor}`, and averaged with
    weights that fall with the distance from the median:

    .. math::
        y = \frac{\sum_r x_r\, e^{-r^2 / 2\sigma^2}}{\sum_r e^{-r^2 / 2\sigma^2}},
        \qquad \sigma = \frac{\mathrm{std}(x)}{\mathrm{mean}(x)}

    Windows that vary little relative to their mean give nearly their median, which drops lone
    outliers; windows that vary much (edges of an activation) give nearly their mean. A constant
    window gives its constant. A window whose mean is zero or less gives 0: the filter is made for
    maps of evidence, which are not negative.

    Source: "Token Activation Map to Visually Explain Multimodal LLMs" (Li et al., ICCV 2025,
    https://arxiv.org/abs/2506.23270).

    Args:
        maps (Tensor): Maps of shape (..., h, w) and a floating-point dtype. Half precision is
            filtered in float32.
        kernel_size (int, optional): Side k of the window in cells, odd. Borders are mirrored
            without repeating the border cell; on an axis of k // 2 cells or fewer, which has
            too few to mirror, the border cell is repeated. 1 leaves the maps as they are.
            Default: 3

    Returns:
        Tensor: Filtered maps, of the shape and dtype of ``maps``. A NaN stays visible in every
        window that it touches.

    Raises:
        TypeError: If ``maps`` is not a floating-point tensor or ``kernel_size`` not an int.
        ValueError: If ``maps`` has fewer than two dimensions, or ``kernel_size`` is even or less
            than 1.

    Examples::

        >>> import torch
        >>> from captum_mllm.attr import rank_gaussian_filter
        >>> speckled = torch.ones(5, 5)
        >>> speckled[2, 2] = 2.0
        >>> bool(torch.equal(rank_gaussian_filter(speckled), torch.ones(5, 5)))
        True
    """
    _validate(maps, kernel_size)
    if kernel_size == 1 or maps.numel() == 0:
        return maps.clone()
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    planes = planes.to(torch.promote_types(maps.dtype, torch.float32))
    per_chunk = max(1, _WINDOW_ELEMENTS // (planes[0].numel() * kernel_size**2))
    filtered = [_filter(chunk, kernel_size) for chunk in planes.split(per_chunk)]
    return torch.cat(filtered).reshape(maps.shape).to(maps.dtype)


def _filter(planes: Tensor, kernel_size: int) -> Tensor:
    """Filter (N, 1, h, w) planes in their own precision."""
    windows = _sorted(F.unfold(_pad(planes, kernel_size // 2), kernel_size))
    mean = windows.mean(dim=1, keepdim=True)
    deviations = windows / torch.where(mean > 0, mean, 1.0) - 1.0
    # At a spread this small all other weights vanish, so that the median stands alone.
    smallest = torch.finfo(planes.dtype).eps ** 2
    precision = 0.5 / deviations.square().mean(dim=1, keepdim=True).clamp_min(smallest)
    middle = kernel_size**2 // 2
    ranks = torch.arange(1, middle + 1, dtype=planes.dtype, device=planes.device)
    # Weights that add nothing are kept from becoming subnormal, which slows arithmetic down.
    weights = torch.exp(-(precision * ranks.square()[:, None]).clamp(max=_NEGLIGIBLE))
    # Ranks on both sides of the median weigh the same.
    pairs = windows[:, middle + 1 :] + windows[:, :middle].flip(1)
    values = (windows[:, middle] + (pairs * weights).sum(dim=1)) / (1 + 2 * weights.sum(dim=1))
    # Compared this way round, a NaN mean is not taken for a window without evidence.
    return values.masked_fill(mean[:, 0] <= 0, 0.0).reshape(planes.shape)


def _sorted(windows: Tensor) -> Tensor:
    """Values (N, K, cells) sorted along dim 1, by exchanges that run over all cells at once."""
    rows = list(windows.unbind(1))
    for low, high in _exchanges(len(rows)):
        rows[low], rows[high] = (
            torch.minimum(rows[low], rows[high]),
            torch.maximum(rows[low], rows[high]),
        )
    return torch.stack(rows, dim=1)


@lru_cache(maxsize=16)
def _exchanges(count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of places to put in order, one after the other, that sort any values: Batcher's
    odd-even merge sort (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M)."""
    pairs: list[tuple[int, int]] = []
    largest = 1 << max((count - 1).bit_length() - 1, 0)
    block = largest
    while block:
        outer, rest, distance = largest, 0, block
        while distance:
            pairs += [
                (place, place + distance)
                for place in range(count - distance)
                if place & block == rest
            ]
            distance, outer, rest = outer - block, outer // 2, block
        block //= 2
    return tuple(pairs)


def _pad(planes: Tensor, width: int) -> Tensor:
    height, breadth = planes.shape[-2:]
    rows = "reflect" if height > width else "replicate"
    columns = "reflect" if breadth > width else "replicate"
    planes = F.pad(planes, (0, 0, width, width), mode=rows)
    return F.pad(planes, (width, width, 0, 0), mode=columns)


def _validate(maps: Tensor, kernel_size: int) -> None:
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        given = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"maps must be a floating-point Tensor, got {given}; use maps.float()")
    if maps.dim() < 2:
        raise ValueError(f"maps must have shape (..., h, w), got {tuple(maps.shape)}")
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise TypeError(f"kernel_size must be an int, got {type(kernel_size).__name__}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be odd and at least 1, got {kernel_size}; a window needs a cell at "
            "its centre and a value at its median"
        )
