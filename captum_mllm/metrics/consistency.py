"""Whether the scales of a multi-scale explanation speak of the same decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.metrics.map_similarity import Measure, unit_vectors


class TargetConsistency(NamedTuple):
    r"""
    How the model sees a target at S scales.

    Args:
        probability (Tensor): Probability of the target, in [0, 1], of shape (S, ...).
        rank (Tensor): Its rank among all outputs, from 1 for the model's choice, of shape
            (S, ...); outputs that are equal share the average of their ranks.
    """

    probability: Tensor
    rank: Tensor


def target_consistency(logits: Sequence[Tensor] | Tensor, target: Tensor) -> TargetConsistency:
    r"""
    Probability and rank of the target at each scale.

    A scale at which the model decides otherwise does not explain the decision.

    Args:
        logits (Sequence[Tensor] or Tensor): The model's output at each scale, S tensors of one
            shape (..., V), such as (T, V) for the tokens of an answer, or one (S, ..., V).
        target (Tensor): Indices of the targets, of shape (...) and an integer dtype, such as the
            tokens of the answer.

    Returns:
        TargetConsistency: In float32, or float64 if the logits are.

    Raises:
        ValueError: If there is no scale, the shapes do not fit together, a target is out of
            range, or a logit is NaN or +inf.

    Examples::

        >>> import torch
        >>> by_scale = [torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0]])]
        >>> target_consistency(by_scale, torch.tensor([0])).rank
        tensor([[1.],
                [3.]])
    """
    if not len(logits) or len({each.shape for each in logits}) > 1:
        raise ValueError(
            "logits must be one tensor per scale, all of one shape, got "
            f"{[tuple(each.shape) for each in logits]}"
        )
    stacked = torch.stack(list(logits)).detach()
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    if stacked.shape[1:-1] != target.shape:
        raise ValueError(
            f"target must have the shape {tuple(stacked.shape[1:-1])} of the logits less their "
            f"last dimension, got {tuple(target.shape)}"
        )
    size = stacked.shape[-1]
    if target.is_floating_point() or ((target < 0) | (target >= size)).any():
        raise ValueError(f"target must hold integers from 0 to {size - 1}")
    # -inf is what a model gives to outputs that it rules out.
    if (stacked.isnan() | (stacked == torch.inf)).any():
        raise ValueError("logits must be finite or -inf, got NaN or +inf")
    index = target.long()[None, ..., None].expand(len(stacked), *target.shape, 1)
    chosen = stacked.gather(-1, index)
    higher, equal = (stacked > chosen).sum(-1), (stacked == chosen).sum(-1)
    probability = (chosen[..., 0] - stacked.logsumexp(-1)).exp().nan_to_num(0.0)
    return TargetConsistency(probability, higher + (equal.to(stacked.dtype) + 1) / 2)


def scale_agreement(
    maps: Sequence[Tensor],
    measure: Measure = "spearman",
    size: tuple[int, int] | None = None,
) -> Tensor:
    r"""
    Similarity of the maps of each pair of scales.

    Args:
        maps (Sequence[Tensor]): The maps at each of S scales, of shapes (..., h, w) of different
            sizes but the same leading dimensions, as ``MSEA(...).attribute(combine=False)`` gives
            them.
        measure (str, optional): ``"spearman"`` or ``"cosine"``; see
            :func:`~captum_mllm.metrics.map_similarity`.
            Default: "spearman"
        size (tuple[int, int], optional): Height and width at which they are compared, bilinear.
            Default: the largest height and the largest width

    Returns:
        Tensor: In [-1, 1], of shape (..., S, S), symmetric, in float64 (float32 on MPS). Its
        diagonal is 1, and all of the row and column of a scale 0 where its map is constant
        (Spearman) or all zero (cosine).

    Raises:
        TypeError: If a map has another dtype than uint8 or a floating-point one.
        ValueError: If there is no scale, the shapes do not fit together, values are not finite,
            or the measure is unknown.

    Examples::

        >>> import torch
        >>> ramps = [torch.linspace(0, 1, n).expand(1, n, n) for n in (4, 8)]
        >>> scale_agreement(ramps)
        tensor([[[1., 1.],
                 [1., 1.]]], dtype=torch.float64)
    """
    if not len(maps):
        raise ValueError("maps must hold the maps of at least one scale, got none")
    vectors = torch.stack(unit_vectors(list(maps), measure, size), dim=-2)
    return (vectors @ vectors.mT).clamp(-1, 1)
