"""Spearman's rank correlation of many pairs at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.metrics.precision import in_double, safe_ratio


def spearman_correlation(first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""
    Spearman's rank correlation along the last dimension.

    The correlation of the values' ranks; equal values share the average of their ranks.

    Args:
        first (Tensor): Of shape (..., n), finite.
        second (Tensor): Of the same shape.
        valid (Tensor, optional): Which pairs of values count, bool, of the same shape: for rows
            of different lengths.
            Default: None

    Returns:
        Tensor: In [-1, 1], of shape (...), in float64 (float32 on MPS). 0 for less than two
        values, and where either side is constant: there is no order to agree with.

    Raises:
        ValueError: If the shapes differ, or a value that counts is not finite.

    Examples::

        >>> import torch
        >>> spearman_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 7.0]))
        tensor(1., dtype=torch.float64)
    """
    if first.shape != second.shape or not first.dim():
        raise ValueError(
            f"the values must have one shape (..., n), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    if valid is None:
        valid = torch.ones_like(first, dtype=torch.bool)
    elif valid.shape != first.shape or valid.dtype != torch.bool:
        raise ValueError(
            f"valid must be bool and have the shape {tuple(first.shape)} of the values, got "
            f"{valid.dtype} and {tuple(valid.shape)}"
        )
    left, right = centered_ranks(first, valid), centered_ranks(second, valid)
    scale = (left.square().sum(-1) * right.square().sum(-1)).sqrt()
    return safe_ratio((left * right).sum(-1), scale).clamp(-1, 1)


def centered_ranks(values: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""
    Ranks along the last dimension, less their mean.

    Args:
        values (Tensor): Of shape (..., n).
        valid (Tensor, optional): Which values count, bool, of the same shape.
            Default: None

    Returns:
        Tensor: Of shape (..., n), in double precision: average ranks of equal values; 0 for
        values that do not count, and for all values of a constant row, exactly.

    Raises:
        ValueError: If a value that counts is not finite.
    """
    values = values.detach()
    if values.is_floating_point():
        values = values.to(torch.promote_types(values.dtype, torch.float32))
    else:
        values = in_double(values)
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    if not values[valid].isfinite().all():
        raise ValueError("values must be finite to be ranked, got NaN or infinity")
    if not values.numel():
        return in_double(values)
    # Behind all others, where they change no rank.
    ascending, order = values.masked_fill(~valid, torch.inf).sort(dim=-1)
    place = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    differs = ascending[..., 1:] != ascending[..., :-1]
    is_first, is_last = F.pad(differs, (1, 0), value=True), F.pad(differs, (0, 1), value=True)
    first = place.where(is_first, 0).cummax(-1).values
    last = place.where(is_last, place[..., -1:]).flip(-1).cummin(-1).values.flip(-1)
    ranks = torch.empty_like(order).scatter_(-1, order, first + last + 1)
    return in_double(ranks - valid.sum(-1, keepdim=True)).masked_fill(~valid, 0) / 2
