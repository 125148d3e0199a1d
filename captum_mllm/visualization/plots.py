"""Plots of maps with matplotlib: ``image_heatmap``, a map over the image, and ``word_sheet``, the
maps of all words.

A plot that is returned is not registered with pyplot: it goes when nothing refers to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from captum_mllm._options import check_number, check_whole
from captum_mllm.visualization.colors import (
    OPACITY,
    color_entries,
    color_limits,
    color_table,
    colormap,
    opacities,
)
from captum_mllm.visualization.fonts import PlotText

_LONGEST_SIDE = 1600  # pixels of a drawn image
WIDEST = 60.0  # inches of a figure
_CELL = 2.2  # inches of one image of a sheet
_DOTS = 200  # pixels an inch of it
_TITLE_LENGTH, _CELL_TITLE_LENGTH = 60, 24


def image_heatmap(
    image: Image.Image | Sequence[Image.Image],
    map_: np.ndarray | Sequence[np.ndarray],
    *,
    title: str | None = None,
    names: Sequence[str] = (),
    label: str = "Attribution",
    alpha: float = OPACITY,
    segments: np.ndarray | Sequence[np.ndarray] | None = None,
    border_width: int = 2,
    show_legends: bool = True,
    show: bool = False,
) -> Any:
    r"""
    The image with a map over it, and a bar of its colours; several images beside each other, on
    one scale of colours.

    Large images are drawn with at most 1600 pixels a side; the axes count pixels of the image.

    Args:
        image (PIL.Image.Image or Sequence[PIL.Image.Image]): the image, or several.
        map_ (np.ndarray or Sequence[np.ndarray]): values laid over the whole image, (h, w); as many
            as images.
        title (str, optional): above the plot. Default: None
        names (Sequence[str]): below each of several images. Default: (), nothing
        label (str): beside the bar. Default: "Attribution"
        alpha (float): opacity of the map where it is strongest, in [0, 1]. Default: 0.75
        segments (np.ndarray or Sequence[np.ndarray], optional): a label for each pixel, integers
            (H, W), where the map is one of segments; as many as images. Default: None
        border_width (int): width of the borders of segments in pixels; 0 for none. Default: 2
        show_legends (bool): write the label of each segment on it. Default: True
        show (bool): show the plot instead of returning it. Default: False

    Returns:
        tuple[Figure, Axes] or None: the plot, unless it is shown; of several images an array of
        axes.
    """
    _check_opacity(alpha)
    several = isinstance(image, Sequence)
    images, maps = _listed(image, several), _listed(map_, several)
    labels = [None] * len(images) if segments is None else _listed(segments, several)
    low, high = color_limits(maps)
    options: dict[str, Any] = {}
    if len(images) > 1:
        ratios = [each.width / each.height for each in images]
        options["figsize"] = min(4.0 * sum(ratios) + 1.2, WIDEST), 4.6
    figure = new_figure(show, layout="constrained", **options)
    if len(images) == 1:
        axes = figure.subplots()
        places = [axes]
    else:
        axes = figure.subplots(1, len(images), width_ratios=ratios)
        places = list(axes)
    for place, each, values, label_map in zip(places, images, maps, labels):
        _draw_map(place, each, values, (low, high), alpha)
        if label_map is not None:
            check_whole("border_width", border_width, 0)
            _draw_segments(place, each, label_map, border_width, show_legends)
        place.axis("off")
    # The bar of an image with an array of opacities would be drawn transparent.
    mappable = ScalarMappable(Normalize(low, high), cmap=colormap(low < 0))
    bar = figure.colorbar(mappable, ax=axes)
    bar.set_label(label)
    if title is not None and len(images) == 1:
        PlotText([title]).write(axes.title, title, _TITLE_LENGTH)
    elif title is not None:
        PlotText([title]).write(figure.suptitle(""), title, _TITLE_LENGTH)
    for place, name in zip(places, names if len(images) > 1 else ()):
        place.set_title(name, fontsize=10)
    return finish(figure, axes, show)


def _draw_map(
    axes: Any, image: Image.Image, map_: np.ndarray, limits: tuple[float, float], alpha: float
) -> None:
    low, high = limits
    extent = _extent(image)
    axes.imshow(np.asarray(_reduced(image, _LONGEST_SIDE)), extent=extent)
    colors = colormap(low < 0)
    axes.imshow(
        map_, cmap=colors, vmin=low, vmax=high, alpha=alpha * opacities(map_, high), extent=extent
    )


def _draw_segments(
    axes: Any, image: Image.Image, segments: np.ndarray, border_width: int, show_legends: bool
) -> None:
    """The borders of segments, and their labels."""
    step = math.ceil(max(image.size) / _LONGEST_SIDE)
    segments = segments[::step, ::step]
    if border_width > 0:
        borders = _borders(segments, border_width)
        axes.imshow(borders, extent=_extent(image), interpolation="nearest")
    if show_legends:
        for name, (row, column) in _places(segments).items():
            axes.text(
                column * step,
                row * step,
                str(name),
                ha="center",
                va="center",
                color="white",
                fontsize=8,
                bbox={"facecolor": "black", "alpha": 0.5, "linewidth": 0, "pad": 1},
            )


def _extent(image: Image.Image) -> tuple[float, float, float, float]:
    """Where it lies on axes that count its pixels."""
    return (-0.5, image.width - 0.5, image.height - 0.5, -0.5)


def word_sheet(
    image: Image.Image | Sequence[Image.Image],
    maps: Sequence[np.ndarray] | Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    *,
    columns: int | None = None,
    label: str = "Attribution",
    alpha: float = OPACITY,
    show: bool = False,
) -> Any:
    r"""
    The image once for each map with a title above it, all on one scale of colours; or several
    images beside each other for each title.

    All lie on one axis, with no more pixels than are shown, so that 400 words take seconds.

    Args:
        image (PIL.Image.Image or Sequence[PIL.Image.Image]): the image, or several.
        maps (Sequence[np.ndarray] or Sequence[Sequence[np.ndarray]]): for each title values laid
            over the whole image, (h, w), of any size; for several images those of each.
        titles (Sequence[str]): the titles.
        columns (int, optional): titles in a row. Default: None, 5 images, and more where there are
            so many that the sheet would become more than twice as tall as wide.
        label (str): beside the bar of colours. Default: "Attribution"
        alpha (float): opacity of the maps where they are strongest, in [0, 1]. Default: 0.75
        show (bool): show the plot instead of returning it. Default: False

    Returns:
        tuple[Figure, Axes] or None: the plot, unless it is shown. ``axes.images``
        and ``axes.texts`` are those of the maps, in their order.

    Raises:
        ValueError: for fewer than one column, or an opacity outside of [0, 1].
    """
    check_whole("columns", columns, 1, optional=True)
    _check_opacity(alpha)
    several = isinstance(image, Sequence)
    images = _listed(image, several)
    groups = [_listed(group, several) for group in maps]
    count = max(len(maps), 1)
    drawn_count = count * len(images)
    usual = max(5, math.ceil(math.sqrt(drawn_count / 2))) // len(images)
    columns = min(columns or max(usual, 1), count)
    rows = math.ceil(count / columns)
    # All lengths are in inches. The more words, the smaller they are.
    side = min(_CELL, max(_CELL * math.sqrt(60 / drawn_count), _CELL / 2))
    sizes = [[length / max(each.size) * side for length in each.size] for each in images]
    line, gap = 0.25, 0.08
    # Words of several images are set apart by more than their images.
    between = gap if len(images) == 1 else 4 * gap
    width = sum(across for across, _ in sizes) + gap * (len(images) - 1)
    cell = max(width, side / 3) + between, line + max(down for _, down in sizes) + gap
    size = columns * cell[0], rows * cell[1]
    figure = new_figure(show, figsize=(size[0] + 1.0, max(size[1], 1.5)))
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((0, 1 - size[1] / tall, size[0] / wide, size[1] / tall))
    axes.axis("off")
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    small = [np.asarray(_reduced(each, round(_DOTS * side)), np.float32) for each in images]
    low, high = color_limits(map_ for group in groups for map_ in group)
    table = color_table(low < 0)
    texts = PlotText(titles)
    letters = max(round(_CELL_TITLE_LENGTH * cell[0] / _CELL), 6)
    for place, (group, title) in enumerate(zip(groups, titles)):
        middle = (place % columns + 0.5) * cell[0]
        left, top = middle - width / 2, place // columns * cell[1] + line
        for map_, pixels, (across, down) in zip(group, small, sizes):
            values = _resized(map_, (len(pixels), len(pixels[0])))
            cover = alpha * opacities(values, high)[..., None]
            tint = table[color_entries(values, low, high)]
            drawn = AxesImage(axes, extent=(left, left + across, top + down, top))
            drawn.set_data((pixels + cover * (tint - pixels)).round().astype(np.uint8))
            axes.add_image(drawn)
            left += across + gap
        text = axes.text(middle, top - gap / 2, "", ha="center", va="bottom", fontsize=10)
        texts.write(text, title, letters)
    share = min(0.8, 4 / tall)
    bar_axes = figure.add_axes((1 - 0.9 / wide, 0.9 - share, 0.12 / wide, share))
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), cmap=colormap(low < 0)), cax=bar_axes
    )
    bar.set_label(label)
    return finish(figure, axes, show)


def _listed(given: Any, several: bool) -> list[Any]:
    return list(given) if several else [given]


def _check_opacity(alpha: float) -> None:
    check_number("alpha", alpha, "[0, 1]")


def new_figure(show: bool, **options: Any) -> Figure:
    if show:
        import matplotlib.pyplot as plt

        return plt.figure(**options)
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, axes: Any, show: bool) -> Any:
    """Captum's habit: show the plot and return nothing, or return it."""
    if not show:
        return figure, axes
    import matplotlib.pyplot as plt

    plt.show()
    # Interactive windows live on; elsewhere the plot has been seen.
    if not matplotlib.is_interactive():
        plt.close(figure)
    return None


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    image = image.convert("RGB")
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return image


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _borders(segments: np.ndarray, width: int) -> np.ndarray:
    """Dark pixels, RGBA, where two segments meet."""
    edge = np.zeros(segments.shape, bool)
    edge[1:] |= segments[1:] != segments[:-1]
    edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    wide = edge.copy()
    for step in range(1, width):
        # In turn to both sides, so that the border stays in the middle.
        shift = (step + 1) // 2 * (-1 if step % 2 else 1)
        for axis in (0, 1):
            moved = np.roll(edge, shift, axis)
            ends = slice(None, shift) if shift > 0 else slice(shift, None)
            moved[(slice(None),) * axis + (ends,)] = False
            wide |= moved
    return np.where(wide[..., None], np.array([20, 20, 20, 180], np.uint8), np.uint8(0))


def _places(segments: np.ndarray) -> dict[int, tuple[float, float]]:
    """A pixel of each segment for its label, the nearest one to its centre."""
    names, members = np.unique(segments, return_inverse=True)
    members = members.reshape(segments.shape)
    counts = np.bincount(members.ravel())
    row, column = np.indices(segments.shape)
    centres = [np.bincount(members.ravel(), axis.ravel()) / counts for axis in (row, column)]
    distance = (row - centres[0][members]) ** 2 + (column - centres[1][members]) ** 2
    order = np.lexsort((distance.ravel(), members.ravel()))
    nearest = order[np.concatenate([[0], np.cumsum(counts)[:-1]])]
    return {
        int(name): (float(row.flat[pixel]), float(column.flat[pixel]))
        for name, pixel in zip(names, nearest)
    }
