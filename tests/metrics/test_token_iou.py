"""Obj-, Func- and F1-IoU against a transcription of their definition, word by word."""

import math
import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_mllm.metrics import (
    ExplainedCaption,
    Word,
    f1_iou,
    function_iou,
    object_iou,
    token_iou,
)
from captum_mllm.metrics.aligned_maps import resize
from captum_mllm.metrics.captions import Kind

HALF = Fraction(1, 2)


def clamp(value: Fraction, high: int) -> Fraction:
    return min(max(value, Fraction(0)), Fraction(high))


def resized_levels(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with pixels' centres at halves and edges repeated, halves rounded up."""
    h, w = levels.shape
    result = np.zeros((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            y = clamp(Fraction((2 * row + 1) * h, 2 * height) - HALF, h - 1)
            x = clamp(Fraction((2 * column + 1) * w, 2 * width) - HALF, w - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, x - left
            upper = int(levels[top, left]) * (1 - dx) + int(levels[top, right]) * dx
            lower = int(levels[bottom, left]) * (1 - dx) + int(levels[bottom, right]) * dx
            result[row, column] = math.floor(upper * (1 - dy) + lower * dy + HALF)
    return result


def best_level(levels: np.ndarray) -> int:
    """The lowest level with the largest variance between the classes that it parts."""
    cells = sorted(int(level) for level in levels.flatten())
    best, largest = cells[0], Fraction(0)
    for count in range(1, len(cells)):
        if cells[count - 1] < cells[count]:
            low, high = cells[:count], cells[count:]
            gap = Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))
            variance = len(low) * len(high) * gap**2
            if variance > largest:
                best, largest = cells[count - 1], variance
    return best


def by_hand(caption: ExplainedCaption) -> tuple[list[float], list[float]]:
    """Scores of the nouns and of the function words of one caption."""
    maps, labels = caption.maps.numpy(), caption.labels.numpy()
    objects: list[float] = []
    thresholds: list[int] = []
    before = None
    for word in caption.words:
        if word.kind == "noun":
            ious, levels = [], []
            target = labels == word.category
            for token in word.tokens:
                image = resized_levels(maps[token], *labels.shape)
                level = best_level(image)
                foreground = image > level
                levels.append(level)
                if target.any() and word.category is not None:
                    ious.append((foreground & target).sum() / (foreground | target).sum())
            thresholds.append(max(levels))
            if ious and word.category == before:
                objects[-1] = max(objects[-1], max(ious))
            elif ious:
                objects.append(max(ious))
        before = word.category
    functions = []
    for word in caption.words:
        if word.kind == "function" and thresholds:
            limit = sum(thresholds) / len(thresholds)
            shares = [(maps[token] < limit).sum() / maps[token].size for token in word.tokens]
            functions.append(sum(shares) / len(shares))
    return objects, functions


KINDS: list[Kind] = ["noun", "noun", "function", "function", "other"]


def draw_caption(generator: random.Random) -> ExplainedCaption:
    h, w = generator.randint(1, 5), generator.randint(1, 5)
    height, width = generator.choice([(h, w), (6, 9), (9, 4), (1, 1)])
    seeded = np.random.default_rng(generator.randrange(2**32))
    words: list[Word] = []
    n_tokens = 0
    for _ in range(generator.randint(0, 7)):
        tokens = tuple(range(n_tokens, n_tokens := n_tokens + generator.randint(1, 3)))
        kind: Kind = generator.choice(KINDS)
        named = kind == "noun" and generator.random() < 0.7
        words.append(Word(kind, tokens, generator.randint(0, 4) if named else None))
    maps = (seeded.random((n_tokens, h, w)) ** 3 * 255).astype(np.uint8)
    # Some maps say nothing.
    maps[seeded.random(n_tokens) < 0.1] = seeded.integers(0, 256)
    labels = seeded.integers(0, 4, (height, width))
    return ExplainedCaption(torch.from_numpy(maps), tuple(words), torch.from_numpy(labels))


@cache
def draw_captions(count: int, seed: int = 0) -> list[ExplainedCaption]:
    generator = random.Random(seed)
    return [draw_caption(generator) for _ in range(count)]


@cache
def scores_by_hand() -> list[tuple[list[float], list[float]]]:
    return [by_hand(caption) for caption in draw_captions(1000)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def test_equals_the_definition_on_a_thousand_captions() -> None:
    captions = draw_captions(1000)
    expected = scores_by_hand()
    found = token_iou(captions)
    objects, functions = zip(*expected, strict=True)
    assert found.objects.n_words.tolist() == [len(scores) for scores in objects]
    assert found.functions.n_words.tolist() == [len(scores) for scores in functions]
    assert found.objects.total.tolist() == pytest.approx([sum(scores) for scores in objects])
    assert found.functions.total.tolist() == pytest.approx([sum(scores) for scores in functions])

    pooled = [mean([score for scores in kind for score in scores]) for kind in (objects, functions)]
    assert float(object_iou(captions)) == pytest.approx(pooled[0])
    assert float(function_iou(captions)) == pytest.approx(pooled[1])
    assert float(f1_iou(captions)) == pytest.approx(harmonic(*pooled))

    each = [(mean(nouns), mean(others)) for nouns, others in expected]
    assert object_iou(captions, per_image=True).tolist() == pytest.approx([o for o, _ in each])
    assert function_iou(captions, per_image=True).tolist() == pytest.approx([f for _, f in each])
    assert f1_iou(captions, per_image=True).tolist() == pytest.approx(
        [harmonic(*pair) for pair in each]
    )


def test_random_captions_reach_every_case() -> None:
    captions = draw_captions(1000)
    scores = scores_by_hand()
    assert any(not objects and functions for objects, functions in scores)
    assert any(objects and not functions for objects, functions in scores)
    assert any(not objects and not functions for objects, functions in scores)
    assert len({caption.maps.shape[1:] + caption.labels.shape for caption in captions}) > 30


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = draw_captions(50)
    whole = token_iou(captions)
    monkeypatch.setattr("captum_mllm.metrics.captions._PIXELS", 100)
    parts = token_iou(captions)
    assert torch.equal(parts.objects.total, whole.objects.total)
    assert torch.equal(parts.functions.total, whole.functions.total)


def test_levels_are_resized_without_smoothing_or_bias() -> None:
    generator = np.random.default_rng(0)
    for size in ((5, 7), (12, 3), (2, 2), (24, 24)):
        levels = generator.integers(0, 256, (8, 6)).astype(np.uint8)
        resized = resize(torch.from_numpy(levels), size, antialias=False)
        assert np.array_equal(resized.numpy(), resized_levels(levels, *size))


LABELS = torch.tensor([[1, 1, 2, 2], [1, 1, 0, 0]])


def noun(category: int | None, *tokens: int) -> Word:
    return Word("noun", tokens, category)


def on(category: int, background: float = 0.25) -> Tensor:
    return torch.where(torch.eq(LABELS, category), 1.0, background)


def test_perfect_inverted_constant_and_empty_maps() -> None:
    maps = torch.stack([on(1), 1.25 - on(1), torch.ones(2, 4), torch.zeros(2, 4)])
    captions = [
        ExplainedCaption(maps, (noun(1, token), Word("other", (0,))), LABELS) for token in range(4)
    ]
    assert object_iou(captions, per_image=True).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_best_token_of_a_word_and_the_best_of_neighbouring_words_count() -> None:
    maps = torch.stack([on(2), on(1), on(2), on(2)])
    one_word = ExplainedCaption(maps, (noun(1, 0, 1, 2),), LABELS)
    neighbours = ExplainedCaption(maps, (noun(1, 0), noun(1, 1), noun(1, 2)), LABELS)
    apart = ExplainedCaption(maps, (noun(1, 0), Word("other", (3,)), noun(1, 1)), LABELS)
    scores = token_iou([one_word, neighbours, apart]).objects
    assert scores.total.tolist() == [1.0, 1.0, 1.0]
    assert scores.n_words.tolist() == [1, 1, 2]


def test_neighbouring_nouns_without_a_category_are_not_one() -> None:
    dark, light = torch.tensor([[0.0, 0.2], [0.0, 0.2]]), torch.tensor([[0.6, 1.0], [0.6, 1.0]])
    maps = torch.stack([dark, light, torch.full((2, 2), 0.4)])
    words = (noun(None, 0), noun(None, 1), Word("function", (2,)))
    # The mean of the thresholds is (0 + 153) / 2, and the function word's level 102.
    assert function_iou([ExplainedCaption(maps, words, LABELS)]) == 0
    words = (noun(None, 1), noun(None, 1), Word("function", (2,)))
    assert function_iou([ExplainedCaption(maps, words, LABELS)]) == 1


def test_a_category_that_is_not_in_the_image_sets_the_threshold_alone() -> None:
    maps = torch.stack([on(1, background=0.5), torch.full((2, 4), 0.4)])
    caption = ExplainedCaption(maps, (noun(9, 0), Word("function", (1,))), LABELS)
    scores = token_iou([caption])
    assert scores.objects.n_words.tolist() == [0]
    assert scores.functions.total.tolist() == [1.0]
    assert scores.f1 == 0


def test_absent_categories_do_not_merge_the_words_before_them() -> None:
    maps = torch.stack([on(1), on(1)])
    words = (noun(1, 0), Word("other", (0,)), noun(2, 1), noun(9, 0), noun(9, 0))
    scores = token_iou([ExplainedCaption(maps, words, LABELS)]).objects
    assert scores.total.tolist() == [1.0]
    assert scores.n_words.tolist() == [2]


def test_darkening_function_words_alone_raises_the_score() -> None:
    maps = torch.stack([on(1), torch.full((2, 4), 0.1)])
    words = (noun(1, 0), Word("function", (1,)))
    bright = ExplainedCaption(maps + torch.tensor([0.0, 0.8])[:, None, None], words, LABELS)
    dark = ExplainedCaption(maps, words, LABELS)
    assert f1_iou([bright, dark], per_image=True).tolist() == [0.0, 1.0]


def test_no_captions_and_no_words() -> None:
    assert token_iou([]).f1 == 0
    empty = ExplainedCaption(torch.zeros(0, 2, 2), (), LABELS)
    assert f1_iou([empty], per_image=True).tolist() == [0.0]
    assert object_iou([empty, *draw_captions(3)], per_image=True).shape == (4,)


def test_values_become_levels() -> None:
    caption = ExplainedCaption(torch.tensor([[[0.0, 0.5, 1.0]]]), (), LABELS)
    assert caption.maps.tolist() == [[[0, 127, 255]]]


def test_bad_captions_are_refused() -> None:
    maps = torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -3 to 0; see normalize"):
        ExplainedCaption(maps - torch.tensor([0.0, 3.0])[:, None, None], (), LABELS)
    with pytest.raises(ValueError, match="must be finite"):
        ExplainedCaption(maps / 0, (), LABELS)
    with pytest.raises(ValueError, match=r"maps must have shape \(T, h, w\), got \(2, 2\)"):
        ExplainedCaption(maps[0], (), LABELS)
    with pytest.raises(ValueError, match="has a token beyond the 2 maps"):
        ExplainedCaption(maps, (noun(1, 2),), LABELS)
    with pytest.raises(TypeError, match="labels must be a Tensor of integers"):
        ExplainedCaption(maps, (), LABELS.float())
    with pytest.raises(ValueError, match=r"labels must have shape \(H, W\)"):
        ExplainedCaption(maps, (), LABELS[0])


def test_bad_words_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        Word("verb", (0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one or more indices from 0 upwards"):
        Word("noun", ())
    with pytest.raises(ValueError, match="only nouns have a category, got 3"):
        Word("function", (0,), 3)
    with pytest.raises(ValueError, match="a label from 0 upwards, got -1"):
        Word("noun", (0,), -1)
