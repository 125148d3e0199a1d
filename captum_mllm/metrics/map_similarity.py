"""How alike two maps are."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import check_maps, resize
from captum_mllm.metrics.precision import in_double
from captum_mllm.metrics.spearman import centered_ranks

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
