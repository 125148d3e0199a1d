"""Estimates of columns, against loops over images and resamples."""

from __future__ import annotations

import pytest
import torch

from captum_mllm.evaluation.records import Score, Scores
from captum_mllm.evaluation.summary import FAITHFULNESS, LOCALIZATION, Column, estimate

COLUMNS = {column.title: column for column in (*LOCALIZATION, *FAITHFULNESS)}


def random_images(count: int) -> list[dict[str, Scores]]:
    generator = torch.Generator().manual_seed(0)

    def score() -> Score:
        words = float(torch.randint(1, 4, (), generator=generator))
        return Score(words * float(torch.rand((), generator=generator)), words)

    names = ("objects", "functions", "pointing")
    images = [
        {method: {name: score() for name in names} for method in ("a", "b")} for _ in range(count)
    ]
    for image in images[::3]:
        del image["b"]
    return images


def value(images: list[dict[str, Scores]], method: str, column: Column) -> float:
    """The statistic, from sums over the images that have it."""
    means = []
    for name in column.scores:
        scores = [image[method][name] for image in images if method in image]
        means.append(sum(score.total for score in scores) / sum(score.words for score in scores))
    return means[0] if len(means) == 1 else 2 * means[0] * means[1] / sum(means)


@pytest.mark.parametrize("title", ["pointing", "F1-IoU"])
def test_values_are_pooled_over_words(title: str) -> None:
    images = random_images(20)
    found = estimate(images, COLUMNS[title], resamples=200)
    for method, images_of_method in (("a", 20), ("b", 13)):
        each = found[method]
        assert each.value == pytest.approx(value(images, method, COLUMNS[title]))
        assert each.low < each.value < each.high
        assert each.images == images_of_method


@pytest.mark.parametrize("title", ["pointing", "F1-IoU"])
def test_differences_are_over_the_images_that_both_have(title: str) -> None:
    images = random_images(20)
    (found,) = estimate(images, COLUMNS[title], "a", resamples=200).values()
    common = [image for image in images if "b" in image]
    first, second = (value(common, method, COLUMNS[title]) for method in ("b", "a"))
    assert found.value == pytest.approx(first - second)
    assert found.images == 13


def test_interval_equals_a_bootstrap_written_out() -> None:
    images = random_images(12)
    found = estimate(images, COLUMNS["pointing"], resamples=500)["a"]
    picks = torch.randint(12, (500, 12), generator=torch.Generator().manual_seed(0))
    values = torch.tensor(
        [value([images[pick] for pick in row], "a", COLUMNS["pointing"]) for row in picks]
    )
    ends = torch.quantile(values, torch.tensor([0.025, 0.975]))
    assert (found.low, found.high) == pytest.approx(tuple(ends.tolist()), abs=1e-5)


def test_methods_without_a_score_are_left_out() -> None:
    images = random_images(6)
    assert estimate(images, COLUMNS["insertion"], resamples=10) == {}
    assert estimate(images, COLUMNS["pointing"], "missing", resamples=10) == {}
    assert estimate([{}, {}], COLUMNS["pointing"], resamples=10) == {}


def test_a_method_equal_to_the_reference_differs_by_nothing() -> None:
    images = random_images(9)
    for image in images:
        image["b"] = image["a"]
    found = estimate(images, COLUMNS["F1-IoU"], "a", resamples=50)["b"]
    assert found[:3] == (0, 0, 0)
