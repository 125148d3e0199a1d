import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from captum_mllm.metrics import (
    earlier_tokens,
    raise_last,
    random_weights,
    recency_weights,
    text_scores,
    uniform_weights,
    without_last,
    word_pointing,
)


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = earlier_tokens(6, 12)
    weights, drops = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64)
    # Some negative weights, but not only those.
    weights = weights + 1
    return weights, drops, valid


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top", [1, 3, 50])
@pytest.mark.parametrize("leave_last", [False, True])
def test_equals_the_definition(seed: int, top: int, leave_last: bool) -> None:
    weights, drops, valid = draw(seed)
    valid = without_last(valid) if leave_last else valid
    found = text_scores(weights, drops, valid, top)
    for row in range(len(valid)):
        places = [i for i in range(12) if valid[row, i]]
        given = [max(float(weights[row, i]), 0) for i in places]
        worth = [abs(float(drops[row, i])) for i in places]
        best = sorted(range(len(places)), key=lambda i: -worth[i])[:top]
        assert float(found.rank_correlation[row]) == pytest.approx(spearmanr(given, worth)[0])
        assert float(found.hit[row]) == float(given.index(max(given)) == best[0])
        share = sum(given[i] for i in best) / sum(given)
        assert float(found.mass_on_top[row]) == pytest.approx(share)


def test_the_truth_itself_scores_best() -> None:
    _, drops, valid = draw()
    found = text_scores(drops.abs(), drops, valid, top=12)
    for score in found:
        torch.testing.assert_close(score, torch.ones(6, dtype=torch.float64))


def test_what_does_not_count_changes_nothing() -> None:
    weights, drops, valid = draw()
    spoiled = [torch.where(valid, each, torch.nan) for each in (weights, drops)]
    for one, other in zip(text_scores(*spoiled, valid), text_scores(weights, drops, valid)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_weights_score_what_chance_does(value: float) -> None:
    _, drops, valid = draw()
    found = text_scores(torch.full_like(drops, value), drops, valid)
    count = valid.sum(1).double()
    assert torch.equal(found.rank_correlation, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found.hit, 1 / count)
    torch.testing.assert_close(found.mass_on_top, 3 / count * value)


def test_rows_without_words() -> None:
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    for score in text_scores(torch.ones(2, 4), torch.ones(2, 4), nothing):
        assert score.tolist() == [0, 0]
    for score in text_scores(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0).bool()):
        assert score.tolist() == [0, 0]


def test_pointing_counts_any_of_the_causes() -> None:
    every = torch.ones(3, 4, dtype=torch.bool)
    causes = torch.tensor([[False, True, True, False]]).expand(3, -1)
    weights = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.9, 0.1, 0.1, 0.1], [0.4, 0.4, 0.0, 0.0]])
    assert word_pointing(weights, causes, every).tolist() == [1.0, 0.0, 0.5]


def test_controls() -> None:
    valid = earlier_tokens(3, 4)
    assert without_last(valid).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert uniform_weights(valid).tolist() == valid.float().tolist()
    recency = recency_weights(valid)
    torch.testing.assert_close(recency[0], torch.tensor([0.5, 1, 0, 0]))
    torch.testing.assert_close(recency[2], torch.tensor([1 / 4, 1 / 3, 1 / 2, 1]))
    raised = raise_last(torch.ones(3, 4), valid)
    assert raised.tolist() == [[1, 3, 1, 1], [1, 1, 3, 1], [1, 1, 1, 3]]
    drawn = random_weights(valid, torch.Generator().manual_seed(0))
    assert (drawn[~valid] == 0).all() and len(drawn[valid].unique()) == int(valid.sum())


def test_scores_do_not_depend_on_units() -> None:
    weights, drops, valid = draw()
    expected = text_scores(weights, drops, valid)
    for one, other in zip(text_scores(weights * 1e30, drops * 1e-30, valid), expected):
        torch.testing.assert_close(one, other)
    half = text_scores(weights.half(), drops, valid)
    assert half.mass_on_top.dtype == torch.float64


def test_bad_arguments_are_refused() -> None:
    weights, drops, valid = draw()
    with pytest.raises(ValueError, match="bool"):
        text_scores(weights, drops, valid.int())
    with pytest.raises(ValueError, match="shape"):
        text_scores(weights[:, :3], drops, valid)
    with pytest.raises(ValueError, match="finite"):
        text_scores(torch.full_like(weights, math.inf), drops, valid)
    with pytest.raises(ValueError, match="top"):
        text_scores(weights, drops, valid, top=0)
    with pytest.raises(ValueError, match="causes"):
        word_pointing(weights, valid.int(), valid)
