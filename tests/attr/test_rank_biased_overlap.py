import importlib
import time

import pytest
import rbo
import torch
from torch import Tensor

from captum_mllm.attr import rank_biased_overlap


def draw_rankings(number: int, depth: int, n_ids: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(number, n_ids, generator=generator)
    return scores.topk(depth, dim=1).indices


def overlap_of_two(first: list[int], second: list[int], persistence: float) -> float:
    """The definition, word for word: agreement at every depth, then the extrapolation."""
    total, agreement = 0.0, 0.0
    for depth in range(1, len(first) + 1):
        agreement = len(set(first[:depth]) & set(second[:depth])) / depth
        total += (1 - persistence) / persistence * agreement * persistence**depth
    return total + agreement * persistence ** len(first)


def overlap_in_a_loop(first: Tensor, second: Tensor, persistence: float) -> Tensor:
    return torch.tensor(
        [[overlap_of_two(a, b, persistence) for b in second.tolist()] for a in first.tolist()],
        dtype=torch.float64,
    )


def reference_package(first: list[int], second: list[int], persistence: float) -> float:
    return rbo.RankingSimilarity(first, second).rbo_ext(persistence)


@pytest.mark.parametrize("n_ids", [50, 60, 500, 20_000])
@pytest.mark.parametrize("persistence", [0.5, 0.9, 0.98])
def test_equals_the_reference_package(n_ids: int, persistence: float) -> None:
    # 4 x 3 x 90 = 1080 pairs.
    first, second = draw_rankings(10, 50, n_ids, 0), draw_rankings(9, 50, n_ids, 1)
    expected = torch.tensor(
        [[reference_package(a, b, persistence) for b in second.tolist()] for a in first.tolist()],
        dtype=torch.float64,
    )
    overlap = rank_biased_overlap(first, second, persistence)
    torch.testing.assert_close(overlap, expected, rtol=0, atol=1e-9)
    assert overlap.std() > 0


@pytest.mark.parametrize("depth", [1, 2, 7, 30])
@pytest.mark.parametrize("persistence", [0.01, 0.9, 0.999])
def test_equals_the_definition(depth: int, persistence: float) -> None:
    first, second = draw_rankings(12, depth, 40, 2), draw_rankings(15, depth, 40, 3)
    torch.testing.assert_close(
        rank_biased_overlap(first, second, persistence),
        overlap_in_a_loop(first, second, persistence),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("elements", [1, 100, 5000])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    first, second = draw_rankings(23, 10, 30, 4), draw_rankings(31, 10, 30, 5)
    whole = rank_biased_overlap(first, second)
    module = importlib.import_module("captum_mllm.attr.functional")
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
    torch.testing.assert_close(rank_biased_overlap(first, second), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("depth", [1, 5, 50])
@pytest.mark.parametrize("persistence", [0.1, 0.5, 0.9, 0.98])
def test_a_ranking_overlaps_fully_with_itself(depth: int, persistence: float) -> None:
    rankings = draw_rankings(8, depth, 100, 6)
    diagonal = rank_biased_overlap(rankings, rankings, persistence).diagonal()
    torch.testing.assert_close(diagonal, torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-14)
    assert diagonal.max() <= 1


@pytest.mark.parametrize(("depth", "persistence"), [(3, 0.99), (50, 0.5)])
def test_rounding_does_not_lift_the_overlap_above_one(depth: int, persistence: float) -> None:
    ranking = torch.arange(depth)[None]
    assert rank_biased_overlap(ranking, ranking, persistence).item() == 1


def test_rankings_without_a_common_id_score_zero() -> None:
    first = draw_rankings(4, 10, 50, 7)
    assert torch.equal(
        rank_biased_overlap(first, first + 50), torch.zeros(4, 4, dtype=torch.float64)
    )


def test_symmetric() -> None:
    first, second = draw_rankings(20, 12, 25, 8), draw_rankings(30, 12, 25, 9)
    torch.testing.assert_close(
        rank_biased_overlap(first, second), rank_biased_overlap(second, first).T, rtol=0, atol=1e-15
    )


def test_only_which_ids_are_equal_matters() -> None:
    first, second = draw_rankings(6, 8, 20, 10), draw_rankings(7, 8, 20, 11)
    names = torch.randint(-(2**62), 2**62, (20,), generator=torch.Generator().manual_seed(12))
    assert torch.equal(
        rank_biased_overlap(names[first], names[second]), rank_biased_overlap(first, second)
    )


def test_agreement_at_the_head_counts_more_and_more_so_for_small_persistence() -> None:
    ranking = torch.tensor([[1, 2, 3, 4]])
    same_head, same_tail = torch.tensor([[1, 2, 8, 9]]), torch.tensor([[8, 9, 3, 4]])
    for persistence in (0.3, 0.9):
        head = rank_biased_overlap(ranking, same_head, persistence)
        tail = rank_biased_overlap(ranking, same_tail, persistence)
        assert head > tail
    patient = rank_biased_overlap(ranking, same_head, 0.9)
    assert rank_biased_overlap(ranking, same_head, 0.3) > patient


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_every_integer_dtype(dtype: torch.dtype) -> None:
    first, second = draw_rankings(3, 5, 9, 13), draw_rankings(3, 5, 9, 14)
    overlap = rank_biased_overlap(first.to(dtype), second)
    assert torch.equal(overlap, rank_biased_overlap(first, second))
    assert overlap.dtype == torch.float64


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_no_rankings_give_an_empty_result(rows: int, columns: int) -> None:
    first, second = draw_rankings(rows, 5, 9, 0), draw_rankings(columns, 5, 9, 0)
    assert rank_biased_overlap(first, second).shape == (rows, columns)


def test_arguments_are_not_changed() -> None:
    first, second = draw_rankings(5, 6, 20, 15), draw_rankings(5, 6, 20, 16)
    before = first.clone(), second.clone()
    rank_biased_overlap(first, second)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_much_faster_than_a_loop_over_pairs() -> None:
    rankings = draw_rankings(150, 50, 1000, 17)
    rows = rankings.tolist()
    rank_biased_overlap(rankings, rankings)

    def seconds(run: object, *arguments: object) -> float:
        start = time.perf_counter()
        run(*arguments)  # type: ignore[operator]
        return time.perf_counter() - start

    # The fastest of several runs, which other work on the machine disturbed least.
    vectorised = min(seconds(rank_biased_overlap, rankings, rankings) for _ in range(20))
    # A sample of the pairs stands for all 150 x 150.
    sample = [(rows[i], rows[(7 * i + 1) % 150]) for i in range(150)]
    pairs = min(
        sum(seconds(reference_package, first, second, 0.9) for first, second in sample)
        for _ in range(3)
    )
    assert pairs * 150 > 50 * vectorised


@pytest.mark.parametrize("persistence", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_persistence_outside_its_range_is_refused(persistence: float) -> None:
    rankings = draw_rankings(2, 3, 5, 0)
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\)"):
        rank_biased_overlap(rankings, rankings, persistence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_scores_instead_of_ids_are_refused(dtype: torch.dtype) -> None:
    rankings = draw_rankings(2, 3, 5, 0)
    with pytest.raises(TypeError, match="second must hold integer ids"):
        rank_biased_overlap(rankings, rankings.to(dtype))


def test_lists_are_refused() -> None:
    with pytest.raises(TypeError, match="first must be a Tensor of ids, got list"):
        rank_biased_overlap([[1, 2]], torch.tensor([[1, 2]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (3, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    rankings = torch.arange(8)[: torch.Size(shape).numel()].reshape(shape)
    with pytest.raises(ValueError, match="first must have shape"):
        rank_biased_overlap(rankings, torch.tensor([[1, 2]]))


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 3 in first and 4 in second"):
        rank_biased_overlap(draw_rankings(2, 3, 9, 0), draw_rankings(2, 4, 9, 0))


def test_a_repeated_id_is_refused_and_its_row_named() -> None:
    rankings = torch.tensor([[1, 2, 3], [4, 5, 4]])
    with pytest.raises(ValueError, match="row 1 of second repeats one"):
        rank_biased_overlap(draw_rankings(2, 3, 9, 0), rankings)
