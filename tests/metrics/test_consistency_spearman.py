import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from captum_mllm.metrics import causal_correlation, spearman_correlation
from captum_mllm.metrics.consistency import centered_ranks


def draw(levels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Few levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, levels, (2, 50, 12), generator=generator).double()
    return first, second


@pytest.mark.parametrize("levels", [2, 3, 10, 10**6])
def test_equals_scipy(levels: int) -> None:
    first, second = draw(levels)
    expected = [spearmanr(*pair).statistic for pair in zip(first, second, strict=True)]
    assert spearman_correlation(first, second).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_ranks_equal_scipy(levels: int) -> None:
    first, _ = draw(levels)
    expected = torch.from_numpy(rankdata(first.numpy(), axis=1)) - 6.5
    assert torch.equal(centered_ranks(first), expected)


@pytest.mark.parametrize("levels", [2, 10**6])
def test_values_that_do_not_count_change_nothing(levels: int) -> None:
    first, second = draw(levels)
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(first.shape, generator=generator) < 0.6
    garbage = torch.where(valid, first, torch.nan)
    found = spearman_correlation(garbage, second, valid)
    expected = [
        spearman_correlation(row[keep], other[keep])
        for row, other, keep in zip(first, second, valid, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_equal_and_reversed_orders() -> None:
    values = torch.tensor([3.0, -1.0, 7.0, 7.0])
    assert spearman_correlation(values, values.exp()) == 1
    assert spearman_correlation(values, -values) == -1


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_without_an_order_there_is_no_correlation(count: int) -> None:
    constant, varied = torch.full((count,), 0.1), torch.arange(count) * 1.0
    assert spearman_correlation(constant, varied) == 0
    assert spearman_correlation(constant, constant) == 0
    assert spearman_correlation(varied, varied) == (1 if count > 1 else 0)


def test_half_precision_and_integers() -> None:
    values = torch.tensor([1, 5, 3])
    assert spearman_correlation(values, values.bfloat16()) == 1
    assert spearman_correlation(values + 2**40, values) == 1


def test_causal_correlation_over_objects() -> None:
    drops = torch.tensor([[5.0, 0.1, 0.2], [5.0, 0.1, 0.0], [1.0, 0.0, 0.0]])
    masses = torch.tensor([[0.5, 0.0, 0.1], [0.1, 0.6, 0.0], [0.7, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert causal_correlation(drops, masses, valid).tolist() == [1.0, -1.0, 0.0]


def test_bad_values_are_refused() -> None:
    values = torch.ones(2, 3)
    with pytest.raises(ValueError, match="must be finite"):
        spearman_correlation(values, values / 0)
    with pytest.raises(ValueError, match="must have one shape"):
        spearman_correlation(values, values[:1])
    with pytest.raises(ValueError, match="valid must be bool and have the shape"):
        spearman_correlation(values, values, torch.ones(2, 3))
