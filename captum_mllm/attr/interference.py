"""What words before it account for in a map, and the map without it."""

from __future__ import annotations

import torch
from torch import Tensor


def suppress_context(maps: Tensor, context_maps: Tensor, weights: Tensor) -> Tensor:
    r"""
    Remove from each map the interference of its context, by least squares.

    With the interference :math:`I_t = \sum_j w_{tj} M_j` and its least-squares share in the map,
    :math:`s_t = \langle M_t, I_t \rangle / \langle I_t, I_t \rangle`, what remains is

    .. math::
        \mathrm{relu}(M_t - s_t I_t)

    after the estimated causal inference of TAM (arXiv 2506.23270). The scale of the weights does
    not matter. A map without interference, or whose weights are all zero, keeps its positive
    part. What cancels but for rounding becomes zero.

    Args:
        maps (Tensor): maps to clean, of shape ``(N, *map)``, any floating dtype.
        context_maps (Tensor): maps of the context, of shape ``(M, *map)``.
        weights (Tensor): weight of each context map for each map, at least 0, shape (N, M).

    Returns:
        Tensor: cleaned maps, of the shape and dtype of ``maps``, at least 0.

    Raises:
        ValueError: if the shapes do not fit, or a weight is negative or not finite.

    Examples::
        >>> import torch
        >>> from captum_mllm.attr import suppress_context
        >>> maps = torch.tensor([[3.0, 1.0]])
        >>> suppress_context(maps, torch.tensor([[0.0, 5.0]]), torch.ones(1, 1))
        tensor([[3., 0.]])
    """
    if maps.shape[1:] != context_maps.shape[1:] or weights.shape != (len(maps), len(context_maps)):
        raise ValueError(
            f"got maps {tuple(maps.shape)}, context maps {tuple(context_maps.shape)} and weights "
            f"{tuple(weights.shape)}, expected (N, *map), (M, *map) and (N, M)"
        )
    if not (torch.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("the weights have to be finite and at least 0")
    dtype = torch.promote_types(maps.dtype, torch.float32)
    own = maps.flatten(1).to(dtype)
    # Each row on a scale of its own, so that neither sums nor squares overflow or vanish.
    weights = _by_largest(weights.to(torch.promote_types(weights.dtype, dtype))).to(dtype)
    interference = _by_largest(weights @ context_maps.flatten(1).to(dtype))
    energy = interference.square().sum(1, keepdim=True)
    share = (own * interference).sum(1, keepdim=True) / torch.where(energy > 0, energy, 1.0)
    cleaned = torch.relu(own - share.clamp(min=0) * interference)
    # Rounding left over from full cancellation must not be blown up into a map.
    rounding = 64 * torch.finfo(dtype).eps * own.abs().amax(1, keepdim=True)
    return cleaned.masked_fill(cleaned <= rounding, 0).reshape(maps.shape).to(maps.dtype)


def _by_largest(rows: Tensor) -> Tensor:
    """Rows, each divided by its largest magnitude; rows of zeros as they are."""
    if not rows.numel():
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1.0)
