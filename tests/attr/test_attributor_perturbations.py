"""Captum's perturbation methods give right values on every kind of model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    FeaturePermutation,
    KernelShap,
    Lime,
    Occlusion,
    ShapleyValues,
    ShapleyValueSampling,
)
from torch import Tensor

from tests.attr.attributor_columns import COLUMNS, LARGER, Column, column, quadrants
from tests.attr.attributor_rows import LeastSquares, kernel_shap, swap

everywhere = pytest.mark.parametrize("name", [*COLUMNS, *LARGER])


def with_segments(where: Column, kept: tuple[bool, ...]) -> Tensor:
    """The image with some of its quadrants, black elsewhere."""
    mask = quadrants(where.size)
    return where.images * torch.tensor(kept)[mask]


@cache
@torch.no_grad()
def game(where: Column) -> dict[tuple[bool, ...], float]:
    """The score of each coalition of quadrants."""
    coalitions = itertools.product((False, True), repeat=4)
    return {kept: where.score(with_segments(where, kept)).item() for kept in coalitions}


def by_segment(where: Column, maps: Tensor) -> Tensor:
    """The value of each quadrant, (4,), which all its pixels have."""
    mask = quadrants(where.size).expand_as(maps)
    values = torch.stack([maps[mask == segment][0] for segment in range(4)])
    assert torch.equal(maps, values[mask])
    return values.double()


@pytest.mark.parametrize("at_once", [1, 3])
@everywhere
def test_ablation_equals_ablation_by_hand(name: str, at_once: int) -> None:
    where = column(name)
    scores = game(where)
    expected = torch.tensor(
        [
            scores[(True,) * 4] - scores[tuple(k != left_out for k in range(4))]
            for left_out in range(4)
        ]
    )
    assert expected.unique().numel() == 4
    mask = quadrants(where.size)
    maps = where.explain(
        FeatureAblation(where.network), feature_mask=mask, perturbations_per_eval=at_once
    )
    torch.testing.assert_close(by_segment(where, maps), expected.double(), rtol=0, atol=1e-6)
    window = (3, where.images.shape[2] // 2, where.images.shape[3] // 2)
    maps = where.explain(
        Occlusion(where.network),
        sliding_window_shapes=window,
        strides=window,
        perturbations_per_eval=at_once,
    )
    torch.testing.assert_close(by_segment(where, maps), expected.double(), rtol=0, atol=1e-6)


@torch.no_grad()
@everywhere
def test_permutation_equals_an_exchange_by_hand(name: str) -> None:
    where = column(name)
    pair = torch.cat([where.images, where.images.flip(-1)])
    mask = quadrants((pair.shape[2], pair.shape[3]))
    maps = FeaturePermutation(where.network, perm_func=swap).attribute(
        pair, feature_mask=mask, **where.forward_arguments
    )
    for segment in range(4):
        inside = (mask == segment).expand_as(pair)
        exchanged = torch.where(inside, pair.flip(0), pair)
        expected = where.score(pair) - where.score(exchanged)
        values = maps[inside].reshape(2, -1)
        torch.testing.assert_close(values, expected[:, None].expand_as(values))


def shapley_values(scores: dict[tuple[bool, ...], float]) -> Tensor:
    """By the formula of Shapley, over all coalitions without a segment."""
    found = []
    for segment in range(4):
        total = 0.0
        for kept, score in scores.items():
            if not kept[segment]:
                size = sum(kept)
                weight = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
                joined = tuple(k or index == segment for index, k in enumerate(kept))
                total += weight * (scores[joined] - score)
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@everywhere
def test_shapley_values_equal_the_formula_and_sum_to_the_difference(name: str) -> None:
    where = column(name)
    scores = game(where)
    mask = quadrants(where.size)
    maps = where.explain(ShapleyValues(where.network), feature_mask=mask, perturbations_per_eval=4)
    found = by_segment(where, maps)
    difference = scores[(True,) * 4] - scores[(False,) * 4]
    torch.testing.assert_close(found, shapley_values(scores), rtol=1e-5, atol=1e-5)
    assert found.sum().item() == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize("name", COLUMNS)
def test_sampled_shapley_values_sum_to_the_difference(name: str) -> None:
    where = column(name)
    scores = game(where)
    difference = scores[(True,) * 4] - scores[(False,) * 4]
    exact = shapley_values(scores)
    mask = quadrants(where.size)
    torch.manual_seed(0)
    sampling = where.explain(ShapleyValueSampling(where.network), feature_mask=mask, n_samples=10)
    torch.manual_seed(0)
    kernel = where.explain(kernel_shap(where.network), feature_mask=mask, n_samples=100)
    for maps in (sampling, kernel):
        found = by_segment(where, maps)
        assert found.sum().item() == pytest.approx(difference, rel=1e-3)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.2 * float(exact.abs().max()))


def every_coalition(inputs: Tensor, **kwargs: Any) -> Iterator[Tensor]:
    for kept in itertools.product((0.0, 1.0), repeat=4):
        yield torch.tensor([kept], dtype=torch.float64)


def closeness(original: Tensor, perturbed: Tensor, kept: Tensor, **kwargs: Any) -> Tensor:
    return kept.sum() + 1


@pytest.mark.parametrize("name", COLUMNS)
def test_lime_is_a_weighted_linear_fit(name: str) -> None:
    where = column(name)
    method = Lime(
        where.network,
        interpretable_model=LeastSquares(),
        similarity_func=closeness,
        perturb_func=every_coalition,
    )
    mask = quadrants(where.size)
    found = by_segment(where, where.explain(method, feature_mask=mask, n_samples=16))
    scores = game(where)
    design = np.array([[1.0, *kept] for kept in scores])
    weights = np.diag([1.0 + sum(kept) for kept in scores])
    normal = design.T @ weights @ design
    expected = np.linalg.solve(normal, design.T @ weights @ np.array(list(scores.values())))
    np.testing.assert_allclose(found.numpy(), expected[1:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "qwen2_vl"])
def test_kernel_shap_fits_the_same_with_scikit_learn(name: str) -> None:
    pytest.importorskip("sklearn")
    where = column(name)
    mask = quadrants(where.size)
    maps = []
    for method in (KernelShap(where.network), kernel_shap(where.network)):
        torch.manual_seed(0)
        maps.append(where.explain(method, feature_mask=mask, n_samples=30))
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-6)
