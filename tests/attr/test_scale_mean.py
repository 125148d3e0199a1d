"""The weighted mean of maps, each with a say where it knows something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_mllm.attr.scale_mean import RunningMean


def slow_mean(
    values: list[Tensor], weights: list[Tensor], masks: list[Tensor | None], cell: tuple[int, ...]
) -> float:
    """The mean of one cell, over the maps that know it if there is one."""
    row, column = cell[-2:]
    known = [
        (float(value[cell]), float(weight[cell[0] % len(weight)]))
        for value, weight, mask in zip(values, weights, masks)
        if mask is None or bool(mask[row, column])
    ]
    known = known or [(float(value[cell]), 1.0) for value in values]
    if not any(weight for _, weight in known):
        known = [(value, 1.0) for value, _ in known]
    return sum(v * w for v, w in known) / sum(w for _, w in known)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_twin(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(2, 1, 3, 4, generator=generator) for _ in range(4)]
    weights = [torch.rand(2, generator=generator).mul(3).floor() for _ in range(3)]
    weights.append(torch.rand(1, generator=generator))
    masks: list[Tensor | None] = [torch.rand(3, 4, generator=generator) > 0.5 for _ in range(3)]
    masks.append(None if seed % 2 else torch.zeros(3, 4, dtype=torch.bool))
    mean = RunningMean(values[0])
    for value, weight, mask in zip(values, weights, masks):
        mean.add(value, weight, mask)
    for index in range(values[0].numel()):
        cell = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(index), (2, 1, 3, 4)))
        assert float(mean.mean[cell]) == pytest.approx(
            slow_mean(values, weights, masks, cell), rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_map_without_weight_has_no_say_even_if_it_is_not_finite(
    value: float, first: bool
) -> None:
    maps = [(torch.full((1, 1, 2, 2), value), 0.0), (torch.ones(1, 1, 2, 2), 1.0)]
    mean = RunningMean(maps[0][0])
    for each, weight in maps if first else reversed(maps):
        mean.add(each, torch.tensor([weight]), None)
    assert torch.equal(mean.mean, torch.ones(1, 1, 2, 2))


def test_what_is_not_finite_where_a_map_knows_nothing_has_no_say() -> None:
    seen = torch.tensor([[True, False]])
    mean = RunningMean(torch.zeros(1, 1, 1, 2))
    mean.add(torch.tensor([[[[2.0, torch.nan]]]]), torch.ones(1), seen)
    mean.add(torch.tensor([[[[4.0, 4.0]]]]), torch.ones(1), None)
    assert mean.mean.flatten().tolist() == [3, 4]
