from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captum_mllm.metrics import (
    interference_leakage,
    intersection_over_union,
    otsu_threshold,
    pointing_game,
    relevance_mass,
    relevance_rank,
)

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: list[Metric] = [
    intersection_over_union,
    pointing_game,
    relevance_mass,
    relevance_rank,
    interference_leakage,
]
by_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)


def draw(count: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 9, 12, generator=generator, dtype=torch.float64)
    masks = torch.rand(count, 9, 12, generator=generator) < 0.3
    return maps, masks


def cell_by_cell(metric: Metric, values: Tensor, mask: Tensor) -> float:
    """The definition for one map, in plain Python."""
    cells = list(zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True))
    if metric is intersection_over_union:
        threshold = float(otsu_threshold(values))
        both = sum(value > threshold and hit for value, hit in cells)
        either = sum(value > threshold or hit for value, hit in cells)
        return both / either
    if metric is pointing_game:
        return float(max(cells)[1])
    if metric is relevance_rank:
        size = sum(hit for _, hit in cells)
        best = sorted(cells, key=lambda cell: -cell[0])[:size]
        return sum(hit for _, hit in best) / size
    inside = sum(max(value, 0.0) for value, hit in cells if hit)
    return inside / sum(max(value, 0.0) for value, _ in cells)


@by_metric
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(metric: Metric, seed: int) -> None:
    maps, masks = draw(seed=seed)
    expected = [cell_by_cell(metric, *pair) for pair in zip(maps, masks, strict=True)]
    assert metric(maps, masks).tolist() == pytest.approx(expected, abs=1e-12)


def half_mask() -> Tensor:
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[:, :3, :4] = True
    return mask


@by_metric
def test_a_perfect_map_scores_one(metric: Metric) -> None:
    mask = half_mask()
    assert metric(mask.float(), mask).tolist() == [1.0]


@by_metric
def test_an_inverted_map_scores_zero(metric: Metric) -> None:
    mask = half_mask()
    assert metric((~mask).float(), mask).tolist() == [0.0]


@pytest.mark.parametrize("value", [0.1, 1.0, 1 / 3, -2.0, 0.0])
@pytest.mark.parametrize("size", [(6, 8), (3, 5), (1, 1), (17, 29)])
def test_a_constant_map_is_no_better_than_chance(value: float, size: tuple[int, int]) -> None:
    mask, constant = half_mask(), torch.full((1, *size), value)
    assert pointing_game(constant, mask).tolist() == [0.0]
    assert intersection_over_union(constant, mask).tolist() == [0.0]
    assert relevance_rank(constant, mask).tolist() == pytest.approx([0.25])
    assert relevance_mass(constant, mask).tolist() == pytest.approx([0.25 if value > 0 else 0.0])
    assert interference_leakage(constant, mask).tolist() == pytest.approx(
        [0.25 if value > 0 else 0.0]
    )


@by_metric
def test_an_empty_mask_scores_zero(metric: Metric) -> None:
    maps, masks = draw()
    assert metric(maps, torch.zeros_like(masks)).tolist() == [0.0] * 5


def test_a_full_mask_scores_one_but_for_the_foreground() -> None:
    maps, masks = draw()
    full = torch.ones_like(masks)
    for metric in (pointing_game, relevance_mass, relevance_rank):
        assert metric(maps, full).tolist() == pytest.approx([1.0] * 5)
    assert (intersection_over_union(maps, full) < 1).all()


@by_metric
def test_one_cell(metric: Metric) -> None:
    score = metric(torch.tensor([[[2.0]]]), torch.tensor([[[True]]]))
    expected = 0.0 if metric in (pointing_game, intersection_over_union) else 1.0
    assert score.tolist() == [expected]


@by_metric
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(metric: Metric, value: float) -> None:
    maps, masks = draw()
    maps[2, 3, 4] = value
    with pytest.raises(ValueError, match="maps must be finite, got NaN or infinity"):
        metric(maps, masks)


@by_metric
@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1e30, 1e300])
def test_scores_do_not_depend_on_the_scale_of_the_map(metric: Metric, factor: float) -> None:
    maps, masks = draw()
    torch.testing.assert_close(metric(maps * factor, masks), metric(maps, masks))


@pytest.mark.parametrize("metric", [pointing_game, relevance_rank])
def test_rank_scores_do_not_depend_on_monotonic_changes(metric: Metric) -> None:
    maps, masks = draw()
    assert torch.equal(metric(maps, masks), metric(maps.exp() ** 2, masks))


@by_metric
def test_the_order_of_cells_does_not_matter_where_values_are_equal(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (20, 5, 6), generator=generator).double()
    masks = torch.rand(20, 5, 6, generator=generator) < 0.4
    order = torch.randperm(30, generator=generator)
    shuffled = [each.flatten(1)[:, order].reshape(20, 5, 6) for each in (maps, masks)]
    torch.testing.assert_close(metric(*shuffled), metric(maps, masks))


def test_tied_largest_values_share_the_hit() -> None:
    maps = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]])
    mask = torch.tensor([[[True, False, False, True]]])
    assert pointing_game(maps, mask).tolist() == pytest.approx([1 / 3])
    # No value lies above the tie; two places are shared by three cells, one of them inside.
    assert relevance_rank(maps, mask).tolist() == pytest.approx([(2 / 3) / 2])


def test_small_maps_are_resized_to_the_masks() -> None:
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[:, :20, :20] = True
    quarter = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert pointing_game(quarter, mask).tolist() == [1.0]
    assert 0.5 < float(relevance_mass(quarter, mask)) < 1
    large = torch.zeros(1, 80, 80)
    large[:, :40, :40] = 1
    assert intersection_over_union(large, mask).tolist() == [1.0]


def test_every_map_on_every_object() -> None:
    maps, masks = draw()
    every = relevance_mass(maps[:, None], masks[None])
    assert every.shape == (5, 5)
    torch.testing.assert_close(every.diagonal(), relevance_mass(maps, masks))
    ranks = relevance_rank(maps[:, None], masks[None])
    torch.testing.assert_close(ranks[3, 1], relevance_rank(maps[3], masks[1]))


def test_levels_score_as_their_values_do() -> None:
    maps, masks = draw()
    levels = (maps.abs() * 60).clamp(max=255).to(torch.uint8)
    for metric in METRICS[1:]:
        torch.testing.assert_close(metric(levels, masks), metric(levels.double(), masks))


@by_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_double(metric: Metric, dtype: torch.dtype) -> None:
    maps, masks = draw()
    half = maps.to(dtype)
    score = metric(half, masks)
    assert score.dtype == torch.float64
    assert torch.equal(score, metric(half.float(), masks))


@by_metric
def test_no_examples(metric: Metric) -> None:
    assert metric(torch.zeros(0, 3, 3), torch.zeros(0, 6, 6, dtype=torch.bool)).shape == (0,)


@by_metric
def test_shapes_that_would_broadcast_to_pairs_are_refused(metric: Metric) -> None:
    maps, masks = draw()
    with pytest.raises(ValueError, match="do not fit together"):
        metric(maps[:, None], masks)
    with pytest.raises(ValueError, match="do not fit together"):
        metric(maps[:3], masks)


def test_masks_that_are_not_binary_are_refused() -> None:
    maps, masks = draw()
    with pytest.raises(ValueError, match="bool or hold 0 and 1 alone; for label images"):
        relevance_mass(maps, masks * 255)
    assert torch.equal(relevance_mass(maps, masks.int()), relevance_mass(maps, masks))


def test_leakage_leaves_out_the_object_itself() -> None:
    values = torch.tensor([[[2.0, 1.0, 1.0, 0.0]]])
    earlier = torch.tensor([[[1, 1, 0, 1]]])
    own = torch.tensor([[[1, 0, 0, 0]]])
    assert interference_leakage(values, earlier).tolist() == [0.75]
    assert interference_leakage(values, earlier, own).tolist() == [0.25]
    with pytest.raises(ValueError, match="must have the same dimensions"):
        interference_leakage(values, earlier, own[0])
