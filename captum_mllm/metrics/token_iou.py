"""Obj-IoU, Func-IoU and F1-IoU: how well the maps of a caption's words match labelled pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import double_dtype, resize, safe_ratio
from captum_mllm.metrics.captions import NO_CATEGORY, CaptionTokens, ExplainedCaption
from captum_mllm.metrics.localization import otsu_threshold


class WordScores(NamedTuple):
    r"""
    Scores of words, summed over each image.

    Args:
        total (Tensor): Sum of the scores of each image's words, of shape (B,), in float64.
        n_words (Tensor): How many words that is, of shape (B,), in float64.
    """

    total: Tensor
    n_words: Tensor

    @property
    def pooled(self) -> Tensor:
        """Mean over the words of all images, a scalar; 0 without words."""
        return safe_ratio(self.total.sum(), self.n_words.sum())

    @property
    def per_image(self) -> Tensor:
        """Mean over the words of each image, (B,); 0 for an image without any."""
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
    def f1_per_image(self) -> Tensor:
        """F1-IoU of each image, (B,); 0 for an image that lacks one kind of word."""
        return harmonic_mean(self.objects.per_image, self.functions.per_image)


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


def token_iou(captions: Sequence[ExplainedCaption]) -> TokenIoU:
    r"""
    Scores of TAM's evaluation, kept apart by image.

    *Objects.* The map of each token of a noun with a category, as 256 grey levels at the size of
    the label image (bilinear), is cut by Otsu's threshold; the score is the intersection over
    union with the pixels of the category. The best token of a noun counts, and the best of
    neighbouring nouns of the same category. Nouns whose category is not in the label image
    are left out.

    *Functions.* A function word should have no foreground. The threshold is the mean, over all
    nouns of the caption with a category or without, of each noun's largest threshold among its
    tokens. The score is the share of cells of the map, at its own size, that lie below it; the
    mean over a word's tokens. Captions without nouns have no such threshold, and are left out.

    Func-IoU is a rate of true negatives: a map that is dark everywhere but in a few cells gets
    nearly 1, and maps that are raised to a power gain. Report it, and F1-IoU, beside scores that
    do not change with monotonic transformations, such as :func:`pointing_game`.

    Source: "Token Activation Map to Visually Explain Multimodal LLMs" (Li et al., ICCV 2025,
    https://arxiv.org/abs/2506.23270) and its published evaluation, with two mends: a constant map
    has no foreground, and nouns of a category that is not in the label image do not make words
    before them merge.

    Args:
        captions (Sequence[ExplainedCaption]): One per image, B in all; of any sizes.

    Returns:
        TokenIoU: Sums and counts of each image, on the device of the first one.

    Examples::

        >>> import torch
        >>> from captum_mllm.metrics import ExplainedCaption, Word
        >>> labels = torch.zeros(4, 4, dtype=torch.long)
        >>> labels[:2, :2] = 3
        >>> of_noun = torch.where(labels == 3, 1.0, 0.2)
        >>> maps = torch.stack([torch.zeros(4, 4), of_noun])
        >>> words = (Word("function", (0,)), Word("noun", (1,), category=3))
        >>> scores = token_iou([ExplainedCaption(maps, words, labels)])
        >>> float(scores.objects.pooled), float(scores.functions.pooled), float(scores.f1)
        (1.0, 1.0, 1.0)
    """
    device = captions[0].maps.device if captions else torch.device("cpu")
    sums = torch.zeros(4, len(captions), dtype=torch.float64)
    nouns, functions = CaptionTokens.of(captions, "noun"), CaptionTokens.of(captions, "function")
    if not len(nouns.caption):
        return _result(sums, device)
    threshold, iou, present = _score_nouns(captions, nouns)

    largest = _largest(threshold, nouns.word)
    captions_of_words = _first(nouns.caption, nouns.word)
    n_nouns = _sum(torch.ones_like(largest), captions_of_words, len(captions))
    foreground = safe_ratio(_sum(largest, captions_of_words, len(captions)), n_nouns)

    counted = _largest(present, nouns.run)
    best = _largest(iou, nouns.run) * counted
    captions_of_runs = _first(nouns.caption, nouns.run)
    sums[0] = _sum(best, captions_of_runs, len(captions))
    sums[1] = _sum(counted, captions_of_runs, len(captions))

    functions = functions.where((n_nouns > 0)[functions.caption])
    if len(functions.caption):
        below = _share_below(captions, functions, foreground)
        n_tokens = _sum(torch.ones_like(below), functions.word, int(functions.word.max()) + 1)
        means = safe_ratio(_sum(below, functions.word, len(n_tokens)), n_tokens)
        captions_of_words = _first(functions.caption, functions.word)
        sums[2] = _sum(means * (n_tokens > 0), captions_of_words, len(captions))
        sums[3] = _sum((n_tokens > 0).to(means), captions_of_words, len(captions))
    return _result(sums, device)


def object_iou(captions: Sequence[ExplainedCaption], per_image: bool = False) -> Tensor:
    r"""
    Obj-IoU: intersection over union of nouns' maps with their category; see :func:`token_iou`.

    Args:
        captions (Sequence[ExplainedCaption]): One per image, B in all.
        per_image (bool, optional): Whether to give the mean of each image's words instead of
            the mean over the words of all images.
            Default: False

    Returns:
        Tensor: In [0, 1], a scalar, or of shape (B,). 0 where there is no noun to score.

    Examples::

        >>> import torch
        >>> from captum_mllm.metrics import ExplainedCaption, Word
        >>> labels = torch.tensor([[1, 1, 0, 0]])
        >>> map_of_noun = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
        >>> caption = ExplainedCaption(map_of_noun, (Word("noun", (0,), category=1),), labels)
        >>> object_iou([caption])
        tensor(0.6667, dtype=torch.float64)
    """
    objects = token_iou(captions).objects
    return objects.per_image if per_image else objects.pooled


def function_iou(captions: Sequence[ExplainedCaption], per_image: bool = False) -> Tensor:
    r"""
    Func-IoU: share of function words' maps below the nouns' threshold; see :func:`token_iou`.

    Args:
        captions (Sequence[ExplainedCaption]): One per image, B in all.
        per_image (bool, optional): Whether to give the mean of each image's words instead of
            the mean over the words of all images.
            Default: False

    Returns:
        Tensor: In [0, 1], a scalar, or of shape (B,). 0 where there is no function word beside a
        noun.

    Examples::

        >>> import torch
        >>> from captum_mllm.metrics import ExplainedCaption, Word
        >>> maps = torch.tensor([[[0.1, 0.1, 0.1, 0.9]], [[0.2, 1.0, 1.0, 1.0]]])
        >>> words = (Word("function", (0,)), Word("noun", (1,)))
        >>> labels = torch.zeros(1, 4, dtype=torch.long)
        >>> function_iou([ExplainedCaption(maps, words, labels)])
        tensor(0.7500, dtype=torch.float64)
    """
    functions = token_iou(captions).functions
    return functions.per_image if per_image else functions.pooled


def f1_iou(captions: Sequence[ExplainedCaption], per_image: bool = False) -> Tensor:
    r"""
    F1-IoU: harmonic mean of Obj-IoU and Func-IoU; see :func:`token_iou`.

    Args:
        captions (Sequence[ExplainedCaption]): One per image, B in all.
        per_image (bool, optional): Whether to give the harmonic mean of each image's two
            scores instead of that of the pooled ones.
            Default: False

    Returns:
        Tensor: In [0, 1], a scalar, or of shape (B,). 0 where one of the two is 0 or has no word.
    """
    scores = token_iou(captions)
    return scores.f1_per_image if per_image else scores.f1


def _score_nouns(
    captions: Sequence[ExplainedCaption], nouns: CaptionTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """Threshold, IoU, and whether the category is in the label image, for each token."""
    threshold, iou, present = torch.zeros(3, len(nouns.caption), dtype=torch.float64)
    for chunk, maps, labels in nouns.stacks(captions):
        height, width = labels.shape[-2:]
        levels = resize(maps, (height, width), antialias=False)
        thresholds = otsu_threshold(levels)
        foreground = levels > thresholds[:, None, None]
        category = nouns.category[chunk].to(labels.device)[:, None, None]
        target = (labels == category) & (category != NO_CATEGORY)
        both = (foreground & target).sum((-2, -1)).cpu().double()
        either = (foreground | target).sum((-2, -1)).cpu().double()
        threshold[chunk] = thresholds.cpu().double()
        iou[chunk] = safe_ratio(both, either)
        present[chunk] = target.any(-1).any(-1).cpu().double()
    return threshold, iou, present


def _share_below(
    captions: Sequence[ExplainedCaption], functions: CaptionTokens, foreground: Tensor
) -> Tensor:
    """Share of each token's cells below the threshold of its caption."""
    below = torch.zeros(len(functions.caption), dtype=torch.float64)
    for chunk, maps, _ in functions.stacks(captions):
        # Levels are whole: below the threshold is below the next whole number.
        limit = foreground[functions.caption[chunk]].ceil().to(maps.device, torch.int16)
        cells = (maps < limit[:, None, None]).flatten(1)
        below[chunk] = cells.sum(1).cpu().double() / cells.shape[1]
    return below


def _largest(values: Tensor, groups: Tensor) -> Tensor:
    """Largest value of each group; values are not negative."""
    return values.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, values, "amax")


def _sum(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, groups, values)


def _first(values: Tensor, groups: Tensor) -> Tensor:
    """The value that all members of each group have in common."""
    return values.new_zeros(int(groups.max()) + 1).scatter(0, groups, values)


def _result(sums: Tensor, device: torch.device) -> TokenIoU:
    sums = sums.to(device, double_dtype(device))
    return TokenIoU(WordScores(sums[0], sums[1]), WordScores(sums[2], sums[3]))
