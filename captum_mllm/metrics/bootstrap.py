"""Confidence intervals by resampling images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.metrics.aligned_maps import in_double, safe_ratio
from captum_mllm.metrics.token_iou import TokenIoU, harmonic_mean

# Largest table of how often each image is drawn, in elements.
_DRAWS = 1 << 19


class Interval(NamedTuple):
    r"""
    An estimate and its confidence interval.

    Args:
        estimate (Tensor): The statistic of the images as they are, of shape (...).
        low (Tensor): Lower end of the interval, of the same shape.
        high (Tensor): Upper end.
    """

    estimate: Tensor
    low: Tensor
    high: Tensor


def paired_bootstrap(
    statistic: Callable[..., Tensor],
    *columns: Tensor,
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Interval:
    r"""
    Percentile bootstrap over images of any function of means.

    In each resample, as many images as there are are drawn with replacement, the same for all
    columns: what differs between images and not between methods cancels in differences.

    Source: "An Introduction to the Bootstrap" (Efron, Tibshirani 1993), chapter 13.

    Args:
        statistic (Callable): Takes the mean of each column over the images, tensors (R, ...) for
            R resamples, and returns a tensor (R, ...).
        *columns (Tensor): One or more, of shape (n, ...) for n images, in the same order.
        confidence (float, optional): Share of the resamples in the interval, in (0, 1).
            Default: 0.95
        resamples (int, optional): Number of resamples.
            Default: 10000
        seed (int, optional): Of the draws, which depend on nothing else but n and ``resamples``.
            Default: 0

    Returns:
        Interval: In float64 (float32 on MPS), on the device of the first column.

    Raises:
        ValueError: If there is no image, the columns differ in length, values are not finite
            (the statistic's in any resample either), or an option is out of its range.

    Examples::

        >>> import torch
        >>> hits, trials = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([4.0, 1.0, 5.0])
        >>> rate = paired_bootstrap(lambda hit, trial: hit / trial, hits, trials)
        >>> round(float(rate.estimate), 3)
        0.7
    """
    tensors = _validate(columns, confidence, resamples)
    n, device = len(tensors[0]), tensors[0].device
    estimate = statistic(*(tensor.mean(0, keepdim=True) for tensor in tensors))[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    rows = max(1, min(resamples, _DRAWS // n))
    for _ in range(0, resamples, rows):
        picks = torch.randint(n, (rows, n), generator=generator)
        counts = torch.zeros(rows, n).scatter_add_(1, picks, torch.ones(rows, n)).to(device)
        means = (_mean(counts, tensor) for tensor in tensors)
        drawn.append(statistic(*means))
    values = torch.cat(drawn)[:resamples].sort(0).values
    if not values.isfinite().all():
        raise ValueError(
            "the statistic is NaN or infinite in a resample; give it a value where it divides by 0"
        )
    tail = (1 - confidence) / 2
    return Interval(estimate, _quantile(values, tail), _quantile(values, 1 - tail))


def bootstrap_mean(
    values: Tensor, confidence: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Interval:
    r"""
    Interval of a mean over images.

    Args:
        values (Tensor): One score per image, of shape (n, ...).
        confidence (float, optional): See :func:`paired_bootstrap`.
            Default: 0.95
        resamples (int, optional): See :func:`paired_bootstrap`.
            Default: 10000
        seed (int, optional): See :func:`paired_bootstrap`.
            Default: 0

    Returns:
        Interval: Of shape (...).

    Examples::

        >>> import torch
        >>> bootstrap_mean(torch.tensor([0.5, 0.5])).low
        tensor(0.5000, dtype=torch.float64)
    """
    return paired_bootstrap(
        _identity, values, confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_difference(
    first: Tensor,
    second: Tensor,
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Interval:
    r"""
    Interval of the difference of two means over the same images, first minus second.

    Args:
        first (Tensor): One score per image, of shape (n, ...).
        second (Tensor): Scores of the same images, of the same shape.
        confidence (float, optional): See :func:`paired_bootstrap`.
            Default: 0.95
        resamples (int, optional): See :func:`paired_bootstrap`.
            Default: 10000
        seed (int, optional): See :func:`paired_bootstrap`.
            Default: 0

    Returns:
        Interval: Of shape (...).

    Examples::

        >>> import torch
        >>> scores = torch.rand(20)
        >>> difference = bootstrap_difference(scores + 0.25, scores)
        >>> bool((difference.low - 0.25).abs() < 1e-6)
        True
    """
    return paired_bootstrap(
        torch.sub, first, second, confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_ratio(
    totals: Tensor,
    counts: Tensor,
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Interval:
    r"""
    Interval of a mean over words that is pooled over images: sum of totals over sum of counts.

    Args:
        totals (Tensor): Sum of the scores of each image's words, of shape (n, ...).
        counts (Tensor): Number of each image's words, of the same shape.
        confidence (float, optional): See :func:`paired_bootstrap`.
            Default: 0.95
        resamples (int, optional): See :func:`paired_bootstrap`.
            Default: 10000
        seed (int, optional): See :func:`paired_bootstrap`.
            Default: 0

    Returns:
        Interval: Of shape (...). A resample without any word counts as 0.

    Examples::

        >>> import torch
        >>> bootstrap_ratio(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])).estimate
        tensor(0.5000, dtype=torch.float64)
    """
    return paired_bootstrap(
        safe_ratio, totals, counts, confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_f1_iou(
    scores: TokenIoU,
    other: TokenIoU | None = None,
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> Interval:
    r"""
    Interval of the pooled F1-IoU, or of the difference of two methods on the same images.

    Args:
        scores (TokenIoU): What :func:`~captum_mllm.metrics.token_iou` gives for n captions.
        other (TokenIoU, optional): The same images under another method, to be subtracted.
            Default: None
        confidence (float, optional): See :func:`paired_bootstrap`.
            Default: 0.95
        resamples (int, optional): See :func:`paired_bootstrap`.
            Default: 10000
        seed (int, optional): See :func:`paired_bootstrap`.
            Default: 0

    Returns:
        Interval: Scalars.

    Examples::

        >>> import torch
        >>> from captum_mllm.metrics import TokenIoU, WordScores
        >>> words = WordScores(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
        >>> bootstrap_f1_iou(TokenIoU(objects=words, functions=words)).estimate
        tensor(0.5000, dtype=torch.float64)
    """
    columns = [*scores.objects, *scores.functions]
    if other is not None:
        columns += [*other.objects, *other.functions]
    return paired_bootstrap(
        _f1_iou, *columns, confidence=confidence, resamples=resamples, seed=seed
    )


def _identity(means: Tensor) -> Tensor:
    return means


def _f1_iou(*means: Tensor) -> Tensor:
    """F1-IoU of the first four means, less that of the next four where there are any."""
    objects, functions = safe_ratio(means[0], means[1]), safe_ratio(means[2], means[3])
    f1 = harmonic_mean(objects, functions)
    return f1 - _f1_iou(*means[4:]) if len(means) > 4 else f1


def _mean(counts: Tensor, column: Tensor) -> Tensor:
    """Means (R, ...) of a column (n, ...) under each row of counts (R, n)."""
    means = (
        counts.to(column) @ column.flatten(1) if column.dim() > 1 else counts.to(column) @ column
    )
    return (means / len(column)).reshape(len(counts), *column.shape[1:])


def _quantile(ascending: Tensor, share: float) -> Tensor:
    """Quantile along the first dimension, linear between neighbours."""
    place = share * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return torch.lerp(ascending[below], ascending[above], place - below)


def _validate(columns: tuple[Tensor, ...], confidence: float, resamples: int) -> list[Tensor]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    if not is_integer(resamples) or resamples < 1:
        raise ValueError(f"resamples must be an int of at least 1, got {resamples!r}")
    if not columns or not all(isinstance(column, Tensor) and column.dim() for column in columns):
        raise ValueError("expected one or more tensors with a row for each image")
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(
            f"expected the same images, at least one, in every column, got {lengths} of them"
        )
    tensors = [in_double(column.detach()) for column in columns]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(
            "values must be finite, got NaN or infinity; for images without a score give totals "
            "and counts of 0 to bootstrap_ratio"
        )
    return tensors
