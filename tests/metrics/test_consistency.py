import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from captum_mllm.metrics import map_similarity, scale_agreement, target_consistency


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_similarity_equals_scipy_and_numpy() -> None:
    first, second = draw(4, 6, 7), draw(4, 6, 7, seed=1)
    pairs = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(first, second, strict=True)]
    ranks = [spearmanr(*pair).statistic for pair in pairs]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    assert map_similarity(first, second).tolist() == pytest.approx(ranks)
    assert map_similarity(first, second, "cosine").tolist() == pytest.approx(cosines)


@pytest.mark.parametrize("measure", ["spearman", "cosine"])
@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_similarity_does_not_depend_on_the_scale_of_a_map(measure: str, factor: float) -> None:
    first, second = draw(6, 7), draw(6, 7, seed=1)
    torch.testing.assert_close(
        map_similarity(first * factor, second, measure),  # type: ignore[arg-type]
        map_similarity(first, second, measure),  # type: ignore[arg-type]
    )


def test_maps_without_an_order_are_like_none() -> None:
    ramp, zero = torch.arange(6.0).reshape(2, 3), torch.zeros(2, 3)
    assert map_similarity(ramp, zero + 0.1) == 0
    assert map_similarity(zero + 0.1, torch.full((5, 7), 0.1)) == 0
    assert map_similarity(ramp, zero, "cosine") == map_similarity(zero, zero, "cosine") == 0
    assert map_similarity(torch.ones(1, 1), torch.ones(1, 1)) == 0


def test_agreement_holds_all_pairs_of_scales() -> None:
    maps = [draw(3, 2, 4, 4), draw(3, 2, 8, 6, seed=1), draw(3, 2, 5, 9, seed=2)]
    agreement = scale_agreement(maps)
    assert agreement.shape == (3, 2, 3, 3)
    torch.testing.assert_close(agreement, agreement.mT)
    torch.testing.assert_close(agreement.diagonal(dim1=-2, dim2=-1), torch.ones(3, 2, 3).double())
    torch.testing.assert_close(
        scale_agreement(maps, size=(8, 6))[..., 0, 1], map_similarity(maps[0], maps[1])
    )


def test_agreement_of_a_scale_that_says_nothing() -> None:
    agreement = scale_agreement([draw(4, 4), torch.full((8, 8), 0.1)])
    assert agreement.tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]


def test_the_same_image_at_two_sizes_agrees() -> None:
    smooth = torch.nn.functional.interpolate(draw(1, 1, 4, 4), (16, 16), mode="bicubic")
    small = torch.nn.functional.interpolate(smooth, (8, 8), mode="area")
    assert float(scale_agreement([smooth, small])[0, 0, 0, 1]) > 0.95


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one scale"):
        scale_agreement([])
    with pytest.raises(ValueError, match="the same dimensions before height and width"):
        scale_agreement([draw(2, 4, 4), draw(1, 4, 4)])
    with pytest.raises(ValueError, match="must be finite"):
        map_similarity(draw(4, 4), torch.full((4, 4), torch.nan))
    with pytest.raises(ValueError, match="measure must be one of"):
        map_similarity(draw(4, 4), draw(4, 4), "ssim")  # type: ignore[arg-type]


def test_probability_and_rank_of_the_target() -> None:
    logits, target = draw(3, 5, 11), torch.tensor([0, 3, 10, 10, 7])
    found = target_consistency(list(logits), target)
    torch.testing.assert_close(
        found.probability, logits.softmax(-1)[:, torch.arange(5), target], rtol=1e-12, atol=0
    )
    order = logits.argsort(-1, descending=True)
    assert torch.equal(found.rank, (order == target[:, None]).double().argmax(-1) + 1.0)


def test_equal_logits_share_their_ranks() -> None:
    found = target_consistency(torch.tensor([[0.0, 0.0, 0.0, -1.0]]), torch.tensor(1))
    assert found.rank.tolist() == [2.0]


def test_outputs_that_are_ruled_out_have_no_probability() -> None:
    logits = torch.tensor([[1.0, -torch.inf]])
    assert target_consistency(logits, torch.tensor(1)).probability.tolist() == [0.0]
    nothing = torch.full((1, 2), -torch.inf)
    assert target_consistency(nothing, torch.tensor(1)).probability.tolist() == [0.0]


def test_half_precision_logits_give_single_precision() -> None:
    found = target_consistency(draw(2, 4).bfloat16(), torch.tensor(0))
    assert found.probability.dtype == found.rank.dtype == torch.float32


def test_bad_logits_are_refused() -> None:
    logits = draw(2, 3, 4)
    with pytest.raises(ValueError, match="one tensor per scale, all of one shape"):
        target_consistency([], torch.tensor(0))
    with pytest.raises(ValueError, match="one tensor per scale, all of one shape"):
        target_consistency([logits[0], logits[0, :2]], torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"target must have the shape \(3,\)"):
        target_consistency(logits, torch.zeros(2).long())
    with pytest.raises(ValueError, match="integers from 0 to 3"):
        target_consistency(logits, torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="NaN"):
        target_consistency(logits / 0 * 0, torch.zeros(3).long())
