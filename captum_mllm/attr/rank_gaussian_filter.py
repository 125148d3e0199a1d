"""Rank Gaussian filter: a denoising filter that adapts to the spread within each window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest tensor of windows, in elements.
_WINDOW_ELEMENTS = 1 << 22


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
    windows = F.unfold(_pad(planes, kernel_size // 2), kernel_size).sort(dim=1).values
    mean = windows.mean(dim=1, keepdim=True)
    deviations = windows / torch.where(mean > 0, mean, 1.0) - 1.0
    # At a spread this small all other weights vanish, so that the median stands alone.
    smallest = torch.finfo(planes.dtype).eps ** 2
    sigma = deviations.square().mean(dim=1, keepdim=True).clamp_min(smallest).sqrt()
    size = kernel_size**2
    ranks = torch.arange(size, dtype=planes.dtype, device=planes.device) - size // 2
    weights = torch.exp(-0.5 * (ranks[:, None] / sigma).square())
    values = (windows * weights).sum(dim=1) / weights.sum(dim=1)
    # Compared this way round, a NaN mean is not taken for a window without evidence.
    return values.masked_fill(mean[:, 0] <= 0, 0.0).reshape(planes.shape)


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
