"""The one colour scale of the plots and the page: ``colormap``, ``color_limits``, ``opacities``."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.colors import Colormap

# Where there is no evidence the image shows through: opacity grows with the value to this power.
FADE = 0.8
OPACITY = 0.75


def colormap(signed: bool) -> Colormap:
    r"""
    The colours of attributions: inferno from 0 up, RdBu reversed around 0.

    Args:
        signed (bool): whether any of the values is negative.
    """
    return matplotlib.colormaps["RdBu_r" if signed else "inferno"]


def color_table(signed: bool) -> np.ndarray:
    r"""The 256 colours of :func:`colormap`, RGB, (256, 3), uint8."""
    return colormap(signed)(np.arange(256), bytes=True)[:, :3]


def color_limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    r"""The values of the first and the last colour: from 0 where nothing is negative, else even
    on both sides of it. Values that are not finite do not count."""
    low = high = 0.0
    for values in maps:
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < 0:
        high = max(high, -low)
        return -high, high
    return 0.0, high or 1.0


def opacities(values: np.ndarray, limit: float) -> np.ndarray:
    r"""How much of the image a map covers, in [0, 1]; 0 for values that are not finite."""
    return np.clip(np.abs(np.nan_to_num(values, posinf=0, neginf=0)) / limit, 0, 1) ** FADE


def color_entries(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which of 256 colours matplotlib gives to each value."""
    share = (np.nan_to_num(values, posinf=0, neginf=0) - low) / (high - low)
    return np.clip(share * 256, 0, 255).astype(np.uint8)
