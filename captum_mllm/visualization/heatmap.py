"""Plots of maps over the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORMAP, SIGNED_COLORMAP = "inferno", "RdBu_r"


def plot_heatmap(
    picture: Image.Image, map: np.ndarray, title: str | None, alpha: float
) -> tuple[Figure, Axes]:
    r"""The picture with one map over it, and a colour bar."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(layout="constrained")
    drawn = _draw(axes, picture, map, _limits([map]), alpha)
    figure.colorbar(drawn, ax=axes, label="Attribution")
    if title is not None:
        axes.set_title(_plain(title))
    return figure, axes


def plot_sheet(
    picture: Image.Image,
    maps: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int,
    alpha: float,
) -> tuple[Figure, np.ndarray]:
    r"""The picture once for each map, all on one scale of colours."""
    import matplotlib.pyplot as plt

    columns = max(min(columns, len(maps)), 1)
    rows = math.ceil(len(maps) / columns)
    width, height = picture.size
    cell = 2.2
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * cell + 0.6, rows * (cell * min(height / width, 3) + 0.3)),
        layout="constrained",
        squeeze=False,
    )
    limits = _limits(maps)
    drawn = None
    for place, map, title in zip(axes.flat, maps, titles):
        drawn = _draw(place, picture, map, limits, alpha)
        place.set_title(_plain(title), fontsize=10)
    for place in axes.flat[len(maps) :]:
        place.axis("off")
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, label="Attribution", shrink=0.8)
    return figure, axes


def show_or_return(plot: Any, show: bool) -> Any:
    r"""Captum's habit: show the plot and return nothing, or return it."""
    if not show:
        return plot
    import matplotlib.pyplot as plt

    plt.show()
    return None


def _limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Colour limits: from zero where nothing is negative, else even on both sides of it."""
    low = min((float(map.min()) for map in maps), default=0.0)
    high = max((float(map.max()) for map in maps), default=0.0)
    if low < 0:
        high = max(high, -low)
        return -high, high
    return 0.0, high or 1.0


def _draw(
    axes: Axes, picture: Image.Image, map: np.ndarray, limits: tuple[float, float], alpha: float
) -> Any:
    low, high = limits
    # Where there is no evidence the picture shows through.
    opacity = alpha * np.sqrt(np.clip(np.abs(map) / high, 0, 1))
    axes.imshow(np.asarray(picture))
    colors = SIGNED_COLORMAP if low < 0 else COLORMAP
    axes.imshow(map, cmap=colors, vmin=low, vmax=high, alpha=opacity)
    axes.axis("off")
    # A colour bar of an image with an array of opacities would be drawn transparent.
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), cmap=colors)


def _plain(text: str) -> str:
    """Dollar signs would start a formula."""
    return text.replace("$", r"\$")
