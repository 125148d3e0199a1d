"""Rank-biased overlap: how far two rankings agree, their heads counting most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest intermediate tensor, in elements (8 bytes each).
_BLOCK_ELEMENTS = 1 << 20


def rank_biased_overlap(first: Tensor, second: Tensor, persistence: float = 0.9) -> Tensor:
    r"""
    Rank-biased overlap (RBO) of every ranking in ``first`` with every ranking in ``second``.

    A ranking lists distinct ids, best first: for example the ids of the k tokens a language
    model finds likeliest next. With :math:`A_d` the share of ids that two rankings have in
    common among their first :math:`d`, and :math:`p` the persistence,

    .. math::
        \mathrm{RBO} = A_k\, p^k + \frac{1 - p}{p} \sum_{d=1}^{k} A_d\, p^d

    This is the extrapolated form, equation 23 of "A Similarity Measure for Indefinite Rankings"
    (Webber, Moffat, Zobel, ACM TOIS 2010): the agreement at depth k is taken to go on below it,
    so that a ranking compared with itself scores 1 for every k and p.

    Exchanging the sums, an id at the 0-based ranks a and b of the two rankings adds
    :math:`c_{\max(a, b)}`, where
    :math:`c_m = (1 - p) \sum_{d=m+1}^{k} p^{d-1} / d + p^k / k`. As c falls with m, this is
    :math:`\min(c_a, c_b)`, and a table of :math:`c_b` over the ids of ``second`` gives all
    pairs without comparing ids pair by pair. Memory beyond the result is bounded.

    Args:
        first (Tensor): N rankings of k ids each, of shape (N, k) and an integer dtype. The ids of
            a row are distinct; their range is free.
        second (Tensor): M rankings of the same length k, of shape (M, k), on the same device.
        persistence (float, optional): Probability p that a reader who looked at one rank goes on
            to the next, in (0, 1). The smaller it is, the more the first ranks count: the
            first 10 ranks hold 86 % of the weight at 0.9 and 99.98 % at 0.5.
            Default: 0.9

    Returns:
        Tensor: RBO of every pair, of shape (N, M), in [0, 1]: 0 for rankings without a common
        id, 1 for equal ones. It is float64, in which the sum is formed (float32 on MPS, which
        has no other): ids carry no floating-point dtype to follow, and ties of close overlaps
        are not to be decided by rounding.

    Raises:
        TypeError: If a ranking is not a tensor of integers.
        ValueError: If the shapes do not fit, a row repeats an id, or ``persistence`` is not in
            (0, 1).

    Examples::

        >>> import torch
        >>> from captum_mllm.attr import rank_biased_overlap
        >>> rankings = torch.tensor([[3, 1, 2], [1, 3, 2], [7, 8, 9]])
        >>> rank_biased_overlap(rankings, rankings, persistence=0.5)
        tensor([[1.0000, 0.5000, 0.0000],
                [0.5000, 1.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    _validate(first, second, persistence)
    depth = first.shape[1]
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    credit = _rank_credit(depth, persistence).to(device=first.device, dtype=dtype)
    first, second = first.long(), second.long()

    overlap = torch.empty(len(first), len(second), dtype=dtype, device=first.device)
    # A table has at most depth * columns + 1 rows, of one entry per column.
    columns = max(1, math.isqrt(_BLOCK_ELEMENTS // depth))
    for start in range(0, len(second), columns):
        block = slice(start, start + columns)
        ids, table = _credit_table(second[block], credit)
        rows = max(1, _BLOCK_ELEMENTS // (depth * table.shape[1]))
        for top in range(0, len(first), rows):
            rankings = first[top : top + rows]
            found = torch.searchsorted(ids, rankings).clamp_(max=len(ids) - 1)
            found = found.masked_fill_(ids[found] != rankings, len(ids))
            shared = table[found].clamp_(max=credit[:, None])
            overlap[top : top + rows, block] = shared.sum(dim=1)
    return overlap.clamp_(max=1.0)


def _rank_credit(depth: int, persistence: float) -> Tensor:
    """What an id adds whose lower rank in the two rankings is m: c_m, for m below ``depth``."""
    depths = torch.arange(1, depth + 1, dtype=torch.float64)
    weights = (1 - persistence) * persistence ** (depths - 1) / depths
    return weights.flip(0).cumsum(0).flip(0) + persistence**depth / depth


def _credit_table(rankings: Tensor, credit: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted ids of the rankings, and each one's credit in each ranking (last row: no such id)."""
    ids, inverse = torch.unique(rankings, return_inverse=True)
    table = credit.new_zeros(len(ids) + 1, len(rankings))
    return ids, table.scatter_(0, inverse.T, credit[:, None].expand(-1, len(rankings)))


def _validate(first: Tensor, second: Tensor, persistence: float) -> None:
    for name, rankings in (("first", first), ("second", second)):
        if not isinstance(rankings, Tensor):
            raise TypeError(f"{name} must be a Tensor of ids, got {type(rankings).__name__}")
        if rankings.dtype == torch.bool or rankings.is_floating_point() or rankings.is_complex():
            raise TypeError(
                f"{name} must hold integer ids, got {rankings.dtype}; pass the indices of "
                "torch.topk, not its values"
            )
        if rankings.dim() != 2 or rankings.shape[1] < 1:
            raise ValueError(
                f"{name} must have shape (rankings, k) with k >= 1, got {tuple(rankings.shape)}"
            )
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"rankings must have the same length, got k = {first.shape[1]} in first and "
            f"{second.shape[1]} in second; cut the longer ones"
        )
    if first.device != second.device:
        raise ValueError(f"rankings must be on one device, got {first.device} and {second.device}")
    if not 0.0 < persistence < 1.0:
        raise ValueError(f"persistence must lie strictly between 0 and 1, got {persistence}")
    for name, rankings in (("first", first), ("second", second)):
        in_order = rankings.sort(dim=1).values
        repeats = (in_order[:, 1:] == in_order[:, :-1]).any(dim=1).nonzero()
        if len(repeats):
            raise ValueError(
                f"a ranking lists each id once, but row {int(repeats[0])} of {name} repeats one"
            )
