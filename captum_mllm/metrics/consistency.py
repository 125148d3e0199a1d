"""How alike two maps are, and whether the scales of an explanation speak of the same decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.metrics.aligned_maps import check_maps, in_double, resize, safe_ratio


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


Measure = Literal["spearman", "cosine"]


def map_similarity(first: Tensor, second: Tensor, measure: Measure = "spearman") -> Tensor:
    r"""
    Similarity of two maps, pair by pair.

    Args:
        first (Tensor): Of shape (..., h, w), of a floating-point dtype or uint8.
        second (Tensor): Of shape (..., h', w') with the same leading dimensions. The smaller
            of the two is resized to the larger, bilinear.
        measure (str, optional): ``"spearman"``, the correlation of the cells' ranks, which does
            not change with monotonic transformations of a map, or ``"cosine"`` of their values.
            Default: "spearman"

    Returns:
        Tensor: In [-1, 1], of shape (...), in float64 (float32 on MPS). 0 where one of the maps
        is constant (Spearman) or all zero (cosine).

    Raises:
        TypeError: If a map has another dtype.
        ValueError: If the shapes do not fit together, values are not finite, or the measure is
            unknown.

    Examples::

        >>> import torch
        >>> ramp = torch.arange(12.0).reshape(3, 4)
        >>> map_similarity(ramp, ramp.exp())
        tensor(1., dtype=torch.float64)
        >>> map_similarity(ramp, -ramp, measure="cosine")
        tensor(-1., dtype=torch.float64)
    """
    first, second = unit_vectors([first, second], measure)
    return (first * second).sum(-1).clamp(-1, 1)


def unit_vectors(
    maps: list[Tensor] | tuple[Tensor, ...],
    measure: Measure,
    size: tuple[int, int] | None = None,
) -> list[Tensor]:
    r"""
    Maps as vectors whose inner products are their similarities.

    Args:
        maps (list[Tensor]): One or more, each of shape (..., h, w), of any sizes but the same
            leading dimensions.
        measure (str): ``"spearman"`` or ``"cosine"``.
        size (tuple[int, int], optional): Height and width at which they are compared.
            Default: the largest height and the largest width

    Returns:
        list[Tensor]: One for each of ``maps``, of shape (..., cells), in double precision: of
        length 1, or 0 for a map that is constant (Spearman) or all zero (cosine).

    Raises:
        TypeError: If a map has another dtype.
        ValueError: If the shapes do not fit together, values are not finite, or the measure is
            unknown.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure must be one of {get_args(Measure)}, got {measure!r}")
    checked = [check_maps(each) for each in maps]
    leading = {each.shape[:-2] for each in checked}
    if len(leading) > 1:
        raise ValueError(
            "maps must have the same dimensions before height and width, got "
            f"{sorted(map(tuple, leading))}"
        )
    if size is None:
        size = (
            max(each.shape[-2] for each in checked),
            max(each.shape[-1] for each in checked),
        )
    return [_unit(resize(each, size).flatten(-2), measure) for each in checked]


def _unit(values: Tensor, measure: Measure) -> Tensor:
    values = centered_ranks(values) if measure == "spearman" else in_double(values)
    # First by the largest value, so that no square is lost or overflows.
    largest = values.abs().amax(-1, keepdim=True)
    values = values / torch.where(largest > 0, largest, 1)
    return values / values.norm(dim=-1, keepdim=True).clamp_min(1)


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
