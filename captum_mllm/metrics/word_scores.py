"""Scores of the words of captions, picture by picture."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from captum_mllm.metrics.precision import safe_ratio


class WordScores(NamedTuple):
    r"""
    Scores of words, summed over each picture.

    Args:
        total (Tensor): Sum of the scores of each picture's words, of shape (B,), in float64.
        n_words (Tensor): How many words that is, of shape (B,), in float64.
    """

    total: Tensor
    n_words: Tensor

    @property
    def pooled(self) -> Tensor:
        """Mean over the words of all pictures, a scalar; 0 where there is none."""
        return safe_ratio(self.total.sum(), self.n_words.sum())

    @property
    def per_picture(self) -> Tensor:
        """Mean over the words of each picture, (B,); 0 for a picture without any."""
        return safe_ratio(self.total, self.n_words)


class TokenIoU(NamedTuple):
    r"""
    What :func:`~captum_mllm.metrics.token_iou` finds in B captions.

    Args:
        objects (WordScores): Intersection over union of nouns with their category.
        functions (WordScores): Share of function words' maps below the nouns' threshold.
    """

    objects: WordScores
    functions: WordScores

    @property
    def f1(self) -> Tensor:
        """F1-IoU of the pooled means, a scalar."""
        return harmonic_mean(self.objects.pooled, self.functions.pooled)

    @property
    def f1_per_picture(self) -> Tensor:
        """F1-IoU of each picture, (B,); 0 for a picture that lacks one kind of word."""
        return harmonic_mean(self.objects.per_picture, self.functions.per_picture)


def harmonic_mean(first: Tensor, second: Tensor) -> Tensor:
    r"""
    Harmonic mean of two scores that are not negative; 0 where one of them is.

    Args:
        first (Tensor): Of any shape.
        second (Tensor): Of the same shape.

    Returns:
        Tensor: The mean.
    """
    return safe_ratio(2 * first * second, first + second)
