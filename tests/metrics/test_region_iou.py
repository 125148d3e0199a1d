"""Nouns with masks that overlap, against label images one by one."""

from __future__ import annotations

import pytest
import torch

from captum_mllm.metrics import ExplainedCaption, Word, token_iou
from captum_mllm.metrics.region_iou import region_iou

WORDS = (
    Word("function", (0,)),
    Word("noun", (1, 2), category=1),
    Word("noun", (3,), category=1),
    Word("other", (4,)),
    Word("noun", (5,)),
    Word("function", (6, 7)),
    Word("noun", (8,), category=0),
)


def slow(levels: torch.Tensor, words: tuple[Word, ...], masks: torch.Tensor) -> list[float]:
    """Each noun as a caption of its own; function words beside nouns that are not shown."""
    nothing = token_iou([ExplainedCaption(levels, words, torch.full(masks.shape[1:], -1))])
    total, count = 0.0, 0
    for word in words:
        if word.category is not None:
            labels = masks[word.category].long() - 1
            alone = ExplainedCaption(levels, (Word("noun", word.tokens, 0),), labels)
            total += float(token_iou([alone]).objects.total)
            count += 1
    return [total, count, float(nothing.functions.total), float(nothing.functions.n_words)]


def in_a_row(levels: torch.Tensor, words: tuple[Word, ...], masks: torch.Tensor) -> list[float]:
    found = region_iou(levels, words, masks)
    return [float(part) for scores in found for part in scores]


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (40, 30)])
@pytest.mark.parametrize("grid", [(1, 1), (5, 4)])
def test_equals_label_images_one_by_one(size: tuple[int, int], grid: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        levels = torch.randint(256, (9, *grid), generator=random, dtype=torch.uint8)
        levels[3] = 77
        levels[8] = 0
        masks = torch.rand(2, *size, generator=random) > 0.4
        masks[:, 0, 0] = True
        expected = pytest.approx(slow(levels, WORDS, masks), abs=1e-12)
        assert in_a_row(levels, WORDS, masks) == expected


def test_without_nouns_there_is_nothing_to_score() -> None:
    levels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    masks = torch.zeros(0, 4, 4, dtype=torch.bool)
    assert in_a_row(levels, (Word("function", (0,)),), masks) == [0, 0, 0, 0]
