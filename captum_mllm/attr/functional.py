"""suppress_context, rank_biased_overlap and rank_gaussian_filter: the arithmetic of ARC and TAM."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm._options import check_number, is_integer
from captum_mllm.models.precision import full_precision


@full_precision()
def suppress_context(
    maps: Tensor, context_maps: Tensor, weights: Tensor, strength: float | None = 1.0
) -> Tensor:
    r"""
    Remove from each map the interference of its context, by least squares.

    With the interference :math:`I_t = \sum_j w_{tj} M_j` and its least-squares share in the map,
    :math:`s_t = \langle M_t, I_t \rangle / \langle I_t, I_t \rangle`, what remains is

    .. math::
        \mathrm{relu}(M_t - \lambda s_t I_t)

    with strength :math:`\lambda`; at 1 it is the estimated causal inference of TAM (arXiv
    2506.23270). The scale of the weights does not matter. A map without interference, or whose
    weights are all zero, keeps its positive part. Values that cancel up to rounding become zero.

    Args:
        maps (Tensor): maps to clean, of shape ``(N, *map)``, any floating dtype.
        context_maps (Tensor): maps of the context, of shape ``(M, *map)``.
        weights (Tensor): weight of each context map for each map, at least 0, shape (N, M).
        strength (float, optional): how much of the share is taken out, in [0, 1]. If None, the
            cosine of :math:`M_t` and :math:`I_t`: a map that is nearly all interference loses
            nearly all of its share, one that has little in common with it keeps most.
            Default: 1.0

    Returns:
        Tensor: cleaned maps, of the shape and dtype of ``maps``, at least 0.

    Raises:
        ValueError: if the shapes do not fit, a weight is negative or not finite, or the strength
            is outside of [0, 1].

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
    check_strength(strength)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    own = maps.flatten(1).to(dtype)
    # Each row on a scale of its own, so that neither sums nor squares overflow or vanish.
    weights = _by_largest(weights.to(torch.promote_types(weights.dtype, dtype))).to(dtype)
    interference = _by_largest(weights @ context_maps.flatten(1).to(dtype))
    energy = interference.square().sum(1, keepdim=True)
    share = (own * interference).sum(1, keepdim=True) / torch.where(energy > 0, energy, 1.0)
    taken: Tensor | float | None = strength
    if taken is None:
        taken = F.cosine_similarity(_by_largest(own), interference).unsqueeze(1)
    cleaned = torch.relu(own - taken * share.clamp(min=0) * interference)
    # Rounding left over from full cancellation must not be blown up into a map.
    rounding = 64 * torch.finfo(dtype).eps * own.abs().amax(1, keepdim=True)
    return cleaned.masked_fill(cleaned <= rounding, 0).reshape(maps.shape).to(maps.dtype)


def check_strength(strength: float | None) -> None:
    r"""Refuse a strength that :func:`suppress_context` does not take."""
    check_number("strength", strength, "[0, 1]", optional=True)


def _by_largest(rows: Tensor) -> Tensor:
    """Rows, each divided by its largest magnitude; rows of zeros as they are."""
    if not rows.numel():
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1.0)


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
    _check_rankings(first, second, persistence)
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


def _check_rankings(first: Tensor, second: Tensor, persistence: float) -> None:
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
    check_number("persistence", persistence, "(0, 1)")
    for name, rankings in (("first", first), ("second", second)):
        in_order = rankings.sort(dim=1).values
        repeats = (in_order[:, 1:] == in_order[:, :-1]).any(dim=1).nonzero()
        if len(repeats):
            raise ValueError(
                f"a ranking lists each id once, but row {int(repeats[0])} of {name} repeats one"
            )


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
    _check_maps(maps, kernel_size)
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
    # At a spread this small all other weights vanish and the median is left.
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


def _check_maps(maps: Tensor, kernel_size: int) -> None:
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        given = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"maps must be a floating-point Tensor, got {given}; use maps.float()")
    if maps.dim() < 2:
        raise ValueError(f"maps must have shape (..., h, w), got {tuple(maps.shape)}")
    if not is_integer(kernel_size):
        raise TypeError(f"kernel_size must be an int, got {type(kernel_size).__name__}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size must be odd and at least 1, got {kernel_size}; a window needs a cell at "
            "its centre and a value at its median"
        )
