"""Signed distances against point-in-shape tests written out point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from captum_mllm.datasets.shapes import EXTENT, SHAPES, signed_distance
from tests.datasets.point_in_shape import contains

GRID = np.stack(np.meshgrid(np.linspace(-1.3, 1.3, 61), np.linspace(-1.3, 1.3, 61)), axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_sign_says_whether_a_point_is_inside(shape: str) -> None:
    distance = signed_distance(shape, GRID[..., 0], GRID[..., 1])
    inside = np.array([[contains(shape, x, y) for x, y in row] for row in GRID.tolist()])
    clear = np.abs(distance) > 1e-9
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal((distance < 0)[clear], inside[clear])


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_never_exceeds_the_way_to_the_outline(shape: str) -> None:
    distance = signed_distance(shape, GRID[..., 0], GRID[..., 1])
    step = 2.6 / 60
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() <= step + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_lies_within_its_extent(shape: str) -> None:
    angles = np.linspace(0, 2 * math.pi, 720)
    for radius in (EXTENT, 1.2 * EXTENT):
        outside = signed_distance(shape, radius * np.cos(angles), radius * np.sin(angles))
        assert (outside > 0).all()


def test_unknown_shape_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"'blob'.*circle"):
        signed_distance("blob", np.zeros(1), np.zeros(1))
