"""How well weights of earlier words match the truth, and the controls to compare them with.

Exports :class:`TextScores`, :func:`text_scores`, :func:`word_pointing`, :func:`without_last`,
:func:`uniform_weights`, :func:`random_weights`, :func:`recency_weights` and
:func:`raise_last`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import in_double, safe_ratio
from captum_mllm.metrics.consistency import spearman_correlation


class TextScores(NamedTuple):
    r"""
    How well the weights of earlier words match what the words are worth.

    Args:
        rank_correlation (Tensor): Spearman's correlation of the weights with the absolute drops,
            in [-1, 1], of shape (T,).
        hit (Tensor): Whether the word with the largest weight is the one with the largest absolute
            drop, in [0, 1], of shape (T,). Words that share the largest weight share the hit.
        mass_on_top (Tensor): Share of the weights on the words with the largest absolute drops,
            in [0, 1], of shape (T,).
    """

    rank_correlation: Tensor
    hit: Tensor
    mass_on_top: Tensor


def text_scores(attributions: Tensor, drops: Tensor, valid: Tensor, top: int = 3) -> TextScores:
    r"""
    Compare the weights of earlier words with what removing each word costs.

    Args:
        attributions (Tensor): Weight of each earlier token or word, of shape (T, n). Negative
            weights count as 0; take absolute values first where the sign does not matter.
        drops (Tensor): What each is worth, as :func:`~captum_mllm.metrics.leave_one_out` gives it,
            of the same shape.
        valid (Tensor): Which ones count, bool, of the same shape; see
            :func:`~captum_mllm.metrics.earlier_tokens` and :func:`without_last`.
        top (int, optional): How many words with the largest absolute drops ``mass_on_top`` looks
            at, at most.
            Default: 3

    Returns:
        TextScores: One score for each row, in float64 (float32 on MPS). A row without a valid
        word scores 0. Rows in which no word matters say nothing; leave out those whose largest
        drop is small, such as 0.05 nats.

    Raises:
        ValueError: If shapes differ, a value that counts is not finite, or ``top`` is below 1.

    Examples::

        >>> import torch
        >>> drops = torch.tensor([[0.1, -2.0, 0.5, 0.0]])
        >>> found = text_scores(drops.abs(), drops, torch.ones(1, 4, dtype=torch.bool), top=2)
        >>> [round(float(score), 3) for score in found]
        [1.0, 1.0, 0.962]
    """
    _check(attributions, valid)
    _check(drops, valid)
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    weights = in_double(attributions.detach()).clamp_min(0).masked_fill(~valid, 0)
    worth = in_double(drops.detach()).abs().masked_fill(~valid, -1)
    best = worth.topk(min(top, worth.shape[1]), dim=1).indices
    chosen = torch.zeros_like(valid).scatter_(1, best, True) & valid
    largest = (worth == worth.amax(1, keepdim=True)) & valid if worth.numel() else valid
    return TextScores(
        spearman_correlation(weights, worth, valid),
        word_pointing(weights, largest, valid),
        safe_ratio((weights * chosen).sum(1), weights.sum(1)),
    )


def word_pointing(attributions: Tensor, causes: Tensor, valid: Tensor) -> Tensor:
    r"""
    Whether the earlier word with the largest weight is one that is known to matter.

    Args:
        attributions (Tensor): Weight of each earlier token or word, of shape (T, n).
        causes (Tensor): Which ones matter, bool, of the same shape.
        valid (Tensor): Which ones count, bool, of the same shape.

    Returns:
        Tensor: In [0, 1], of shape (T,), in float64 (float32 on MPS). Where several share the
        largest weight, the share of causes among them, so that uniform weights score what chance
        does; 0 for a row without a valid word.

    Raises:
        ValueError: If shapes differ, or a weight that counts is not finite.

    Examples::

        >>> import torch
        >>> every = torch.ones(1, 3, dtype=torch.bool)
        >>> cause = torch.tensor([[False, True, False]])
        >>> word_pointing(torch.tensor([[0.2, 0.7, 0.1]]), cause, every)
        tensor([1.], dtype=torch.float64)
    """
    _check(attributions, valid)
    if causes.shape != valid.shape or causes.dtype != torch.bool:
        raise ValueError(
            f"causes must be bool and of shape {tuple(valid.shape)}, got {causes.dtype} and "
            f"{tuple(causes.shape)}"
        )
    if not attributions.shape[1]:
        return in_double(attributions.new_zeros(len(attributions)))
    values = attributions.detach().masked_fill(~valid, -torch.inf)
    peaks = (values == values.amax(1, keepdim=True)) & valid
    return safe_ratio(in_double((peaks & causes).sum(1)), in_double(peaks.sum(1)))


def without_last(valid: Tensor) -> Tensor:
    r"""
    The valid words of each row without the one directly before the explained token.

    Args:
        valid (Tensor): bool, of shape (T, n), the words in their order.

    Returns:
        Tensor: bool, of the same shape.
    """
    return valid & ~_is_last(valid)


def uniform_weights(valid: Tensor) -> Tensor:
    r"""
    The control in which each earlier word counts the same.

    Args:
        valid (Tensor): bool, of shape (T, n).

    Returns:
        Tensor: float32; 1 for each valid word.
    """
    return valid.float()


def random_weights(valid: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""
    The control of independent random weights.

    Args:
        valid (Tensor): bool, of shape (T, n).
        generator (torch.Generator, optional): Where the numbers come from.
            Default: None, torch's own

    Returns:
        Tensor: float32, in [0, 1); 0 for words that do not count.
    """
    return torch.rand(valid.shape, generator=generator).to(valid.device) * valid


def recency_weights(valid: Tensor) -> Tensor:
    r"""
    The control in which a word's weight is 1 over its distance to the explained token.

    Args:
        valid (Tensor): bool, of shape (T, n), the words in their order.

    Returns:
        Tensor: float32, in [0, 1]; 1 for the word directly before.
    """
    distance = valid.flip(1).cumsum(1).flip(1)
    return valid / distance.clamp_min(1)


def raise_last(weights: Tensor, valid: Tensor, factor: float = 3.0) -> Tensor:
    r"""
    The control that multiplies the weight of the word directly before the explained token.

    Args:
        weights (Tensor): Of shape (T, n).
        valid (Tensor): bool, of the same shape.
        factor (float, optional): What to multiply with.
            Default: 3.0

    Returns:
        Tensor: Of the shape and dtype of ``weights``.
    """
    return torch.where(_is_last(valid), weights * factor, weights)


def _is_last(valid: Tensor) -> Tensor:
    return valid & (valid.flip(1).cumsum(1).flip(1) == 1)


def _check(values: Tensor, valid: Tensor) -> None:
    if valid.dim() != 2 or valid.dtype != torch.bool or values.shape != valid.shape:
        raise ValueError(
            "weights and drops must have the shape (T, n) of valid, which is bool, got "
            f"{tuple(values.shape)}, and {tuple(valid.shape)} of {valid.dtype}"
        )
    if not values.detach()[valid].isfinite().all():
        raise ValueError("weights and drops that count must be finite, got NaN or infinity")
