import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap
from torch import Tensor

from captum_mllm.metrics import (
    TokenIoU,
    WordScores,
    bootstrap,
    bootstrap_difference,
    bootstrap_f1_iou,
    bootstrap_mean,
    bootstrap_ratio,
    paired_bootstrap,
)


def scores(count: int = 80, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(count: int = 80, seed: int = 0) -> Tensor:
    return torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(seed)).double()


def token_scores(seed: int) -> TokenIoU:
    nouns, functions = counts(seed=seed), counts(seed=seed + 1)
    return TokenIoU(
        WordScores(scores(seed=seed) * nouns, nouns),
        WordScores(scores(seed=seed + 1) * functions, functions),
    )


def test_mean_equals_scipy_up_to_the_draws() -> None:
    found = bootstrap_mean(scores())
    expected = scipy_bootstrap(
        (scores().numpy(),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.estimate == scores().mean()
    assert float(found.low) == pytest.approx(expected.low, abs=0.003)
    assert float(found.high) == pytest.approx(expected.high, abs=0.003)


def test_equals_a_loop_over_resamples() -> None:
    """The same draws, image by image."""
    values, other = scores(20), scores(20, seed=1)
    picks = torch.randint(20, (300, 20), generator=torch.Generator().manual_seed(7))
    means = sorted(
        sum(float(values[pick] - other[pick]) for pick in row) / 20 for row in picks.tolist()
    )
    found = bootstrap_difference(values, other, confidence=0.9, resamples=300, seed=7)
    low, high = np.quantile(means, [0.05, 0.95])
    assert float(found.low) == pytest.approx(low)
    assert float(found.high) == pytest.approx(high)


def test_what_differs_between_images_cancels_in_a_difference() -> None:
    difference = bootstrap_difference(scores() * 100 + 1, scores() * 100)
    assert [float(each) for each in difference] == pytest.approx([1.0] * 3)


def test_ratio_weighs_images_by_their_words() -> None:
    totals = scores() * counts()
    found = bootstrap_ratio(totals, counts())
    assert float(found.estimate) == pytest.approx(float(totals.sum() / counts().sum()))
    assert found.low < found.estimate < found.high


def test_f1_iou_is_that_of_the_pooled_means() -> None:
    first, second = token_scores(0), token_scores(10)
    found = bootstrap_f1_iou(first)
    torch.testing.assert_close(found.estimate, first.f1)
    assert found.low < found.estimate < found.high
    difference = bootstrap_f1_iou(first, second)
    torch.testing.assert_close(difference.estimate, first.f1 - second.f1)
    assert [float(each) for each in bootstrap_f1_iou(first, first)] == [0.0] * 3


def test_f1_iou_equals_a_loop_over_resamples() -> None:
    given = token_scores(0)
    picks = torch.randint(80, (100, 80), generator=torch.Generator().manual_seed(0))
    values = []
    for row in picks:
        drawn = TokenIoU(*(WordScores(kind.total[row], kind.n_words[row]) for kind in given))
        values.append(float(drawn.f1))
    found = bootstrap_f1_iou(given, resamples=100, confidence=0.8)
    assert [float(found.low), float(found.high)] == pytest.approx(np.quantile(values, [0.1, 0.9]))


def test_columns_of_many_scores_are_those_of_each() -> None:
    table = torch.stack([scores(seed=seed) for seed in range(6)], dim=1).reshape(80, 2, 3)
    found = bootstrap_mean(table)
    assert found.low.shape == (2, 3)
    torch.testing.assert_close(found.low[1, 2], bootstrap_mean(table[:, 1, 2]).low)


def test_the_same_seed_gives_the_same_interval() -> None:
    first, again, other = (bootstrap_mean(scores(), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low


def test_chunks_cover_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(means: Tensor) -> Tensor:
        seen.append(len(means))
        return means

    monkeypatch.setattr(bootstrap, "_DRAWS", 80 * 30)
    found = paired_bootstrap(count, scores(), resamples=100)
    assert seen == [1, 30, 30, 30, 30]
    assert found.low < found.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(50, 400, generator=generator)
    found = bootstrap_mean(samples, confidence=0.9, resamples=1000)
    covered = ((found.low < 0.5) & (found.high > 0.5)).double().mean()
    assert 0.84 < float(covered) < 0.94


def test_one_image_and_equal_images_have_no_spread() -> None:
    for values in (torch.tensor([0.25]), torch.full((30,), 0.25)):
        assert [float(each) for each in bootstrap_mean(values)] == [0.25] * 3


def test_no_words_count_as_zero() -> None:
    nothing = torch.zeros(4)
    assert [float(each) for each in bootstrap_ratio(nothing, nothing)] == [0.0] * 3


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity; for images"):
        bootstrap_mean(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match=r"the same images, at least one, in every column"):
        bootstrap_difference(scores(3), scores(4))
    with pytest.raises(ValueError, match=r"the same images, at least one, in every column"):
        bootstrap_mean(torch.zeros(0))
    with pytest.raises(ValueError, match="confidence must lie strictly between 0 and 1"):
        bootstrap_mean(scores(), confidence=95)
    with pytest.raises(ValueError, match="resamples must be an int of at least 1"):
        bootstrap_mean(scores(), resamples=0)
    with pytest.raises(ValueError, match="the statistic is NaN or infinite"):
        paired_bootstrap(torch.div, torch.ones(2), torch.tensor([0.0, 1.0]))
