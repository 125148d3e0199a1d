from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from skimage.color import rgb2lab

from captum_mllm.visualization.colormap import diverging_colors, sequential_colors


def _cielab(colors: np.ndarray) -> np.ndarray:
    return rgb2lab(colors[None] / 255.0)[0]


def test_sequential_lightness_rises_evenly() -> None:
    steps = np.diff(_cielab(sequential_colors(33))[:, 0])
    assert steps.min() > 0
    assert steps.max() < 1.6 * steps.mean()


def test_diverging_arms_have_equal_lightness_and_opposite_hue() -> None:
    lab = _cielab(diverging_colors(257))
    low, high = lab[:128], lab[:128:-1]
    assert np.abs(low[:, 0] - high[:, 0]).max() < 6
    assert (low[:120, 2] < -5).all()
    assert (high[:120, 1] > 5).all()


def test_middle_of_diverging_is_grey() -> None:
    red, green, blue = diverging_colors(257)[128].astype(int)
    assert max(red, green, blue) - min(red, green, blue) <= 2


@pytest.mark.parametrize("table", [sequential_colors, diverging_colors])
def test_neighbouring_colors_are_close(table: Callable[[int], np.ndarray]) -> None:
    distances = np.linalg.norm(np.diff(_cielab(table(256)), axis=0), axis=1)
    assert 0 < distances.max() < 4


@pytest.mark.parametrize("table", [sequential_colors, diverging_colors])
def test_a_table_needs_two_colors(table: Callable[[int], np.ndarray]) -> None:
    assert table(2).shape == (2, 3)
    with pytest.raises(ValueError, match="at least 2"):
        table(1)
