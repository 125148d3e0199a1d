"""``region_iou``: Obj-, Func- and F1-IoU where each noun has a mask of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import in_double, resize, safe_ratio
from captum_mllm.metrics.captions import Word
from captum_mllm.metrics.localization import LEVELS, best_level
from captum_mllm.metrics.token_iou import TokenIoU, WordScores


def region_iou(levels: Tensor, words: Sequence[Word], masks: Tensor) -> TokenIoU:
    r"""
    The scores of :func:`~captum_mllm.metrics.token_iou` for regions that may overlap.

    No label image holds such regions, so that each noun is compared with its own, and nouns that
    follow each other are not merged. One histogram of each map, inside of the mask and outside,
    tells the threshold and all counts.

    Args:
        levels (Tensor): The map of each token, of shape (T, h, w), uint8.
        words (Sequence[Word]): The words; the category of a noun is the index of its mask.
        masks (Tensor): What nouns speak of, of shape (K, H, W), bool, none of them empty.

    Returns:
        TokenIoU: Sums and counts of the one caption, (1,) each.
    """
    nouns = [word for word in words if word.kind == "noun"]
    functions = [word for word in words if word.kind == "function"]
    if not nouns:
        return _scores((0, 0), (0, 0))
    rows = [token for noun in nouns for token in noun.tokens]
    counts = _histograms(
        levels[rows], [noun.category for noun in nouns for _ in noun.tokens], masks
    )
    everywhere, inside = counts.sum(1), counts[:, 1]
    thresholds = best_level(everywhere)
    above = torch.arange(LEVELS, device=levels.device) > thresholds[:, None]
    both, marked = (inside * above).sum(1), (everywhere * above).sum(1)
    iou = safe_ratio(in_double(both), in_double(marked + inside.sum(1) - both)).tolist()

    best, largest, start = [], [], 0
    limits = thresholds.tolist()
    for noun in nouns:
        own = slice(start, start := start + len(noun.tokens))
        largest.append(max(limits[own]))
        if noun.category is not None:
            best.append(max(iou[own]))
    limit = sum(largest) / len(largest)
    below = in_double((levels.flatten(1) < limit).sum(1)) / levels[0].numel()
    shares = [float(below[list(word.tokens)].mean()) for word in functions]
    return _scores((sum(best), len(best)), (sum(shares), len(shares)))


def _histograms(levels: Tensor, regions: Sequence[int | None], masks: Tensor) -> Tensor:
    """Counts of the levels outside and inside of each map's mask, (n, 2, 256)."""
    resized = resize(levels, (masks.shape[-2], masks.shape[-1]), antialias=False)
    starts = torch.arange(len(regions), dtype=torch.int32, device=levels.device) * 2 * LEVELS
    bins = resized.to(torch.int32) + starts[:, None, None]
    rows = [row for row, region in enumerate(regions) if region is not None]
    marked = masks[[region for region in regions if region is not None]]
    if len(rows) < len(regions):
        marked = torch.zeros_like(bins, dtype=torch.bool).index_copy(
            0, torch.tensor(rows, device=marked.device), marked
        )
    bins.add_(marked, alpha=LEVELS)
    counts = torch.bincount(bins.flatten(), minlength=2 * LEVELS * len(bins))
    return counts.reshape(-1, 2, LEVELS)


def _scores(objects: tuple[float, int], functions: tuple[float, int]) -> TokenIoU:
    parts = torch.tensor([objects, functions], dtype=torch.float64)
    return TokenIoU(*(WordScores(total[None], count[None]) for total, count in parts))
