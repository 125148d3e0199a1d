"""Plots of the weights of earlier tokens: ``token_weights``, ``token_sums``, ``text_records``."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from captum.attr import visualization

from captum_mllm.visualization.colors import color_limits, colormap
from captum_mllm.visualization.fonts import PlotText
from captum_mllm.visualization.plots import WIDEST, finish, new_figure

# Beyond this many cells, numbers in them are too small to read and slow to draw.
_NUMBERED_CELLS = 2000
_TALLEST = 40.0  # inches


def token_weights(
    weights: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    label: str = "Token Attribution",
    show: bool = False,
) -> Any:
    r"""
    A table of weights in colours, with the numbers in its cells where they can be read.

    Args:
        weights (np.ndarray): the weight of each column's token for each row's, (R, C).
        columns (Sequence[str]): the tokens that weigh.
        rows (Sequence[str]): the tokens that they weigh for.
        label (str): beside the bar of colours. Default: "Token Attribution"
        show (bool): show the plot instead of returning it. Default: False

    Returns:
        tuple[Figure, Axes] or None: the plot, unless it is shown.
    """
    numbered = weights.size <= _NUMBERED_CELLS
    wide, tall = (1.3 if numbered else 0.2) * len(columns), len(rows) / (2.5 if numbered else 5)
    size = (min(max(wide, 6.4), WIDEST), min(max(tall, 4.8), _TALLEST))
    figure = new_figure(show, figsize=size, layout="constrained")
    axes = figure.subplots()
    low, high = color_limits([weights])
    drawn = axes.imshow(
        weights, vmin=low, vmax=high, cmap=colormap(low < 0), aspect="auto", interpolation="nearest"
    )
    bar = figure.colorbar(drawn, ax=axes)
    bar.ax.set_ylabel(label, rotation=-90, va="bottom")
    texts = PlotText([*columns, *rows])
    _label_columns(axes, columns, texts)
    texts.write_ticks(axes.yaxis, rows)
    for (row, column), value in np.ndenumerate(weights) if numbered else ():
        red, green, blue, _ = drawn.to_rgba(value)
        is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        axes.text(
            column,
            row,
            f"{value:.4f}",
            ha="center",
            va="center",
            color="black" if is_bright or not np.isfinite(value) else "white",
        )
    return finish(figure, axes, show)


def token_sums(
    weights: np.ndarray,
    tokens: Sequence[str],
    *,
    label: str = "Sequence Attribution",
    show: bool = False,
) -> Any:
    r"""
    A bar for the weight of each token.

    Args:
        weights (np.ndarray): a weight for each token, (C,).
        tokens (Sequence[str]): the tokens.
        label (str): beside the bars. Default: "Sequence Attribution"
        show (bool): show the plot instead of returning it. Default: False

    Returns:
        tuple[Figure, Axes] or None: the plot, unless it is shown.
    """
    wide, tall = max(len(tokens) / 2, 6.4), max(len(tokens) / 4, 4.8)
    figure = new_figure(show, figsize=(min(wide, WIDEST), min(tall, 12.0)), layout="constrained")
    axes = figure.subplots()
    colors = colormap(signed=True)
    for sign, color in ((1, colors(0.85)), (-1, colors(0.15))):
        axes.bar(range(len(tokens)), np.where(sign * weights > 0, weights, 0), color=color)
    _label_columns(axes, tokens, PlotText(tokens))
    axes.set_ylabel(label)
    return finish(figure, axes, show)


def text_records(
    input_tokens: Sequence[str],
    output_tokens: Sequence[str],
    token_attr: Any,
    output_probs: Sequence[float],
) -> list[visualization.VisualizationDataRecord]:
    r"""
    A record of each explained token for Captum's ``visualize_text``.

    The weights of the earlier tokens are divided by the largest, and the tokens are escaped, which
    Captum does not do.

    Args:
        input_tokens (Sequence[str]): the tokens that weigh.
        output_tokens (Sequence[str]): the T explained tokens.
        token_attr (Tensor): weight of each input token, shape (T, len(input_tokens)).
        output_probs (Sequence[float]): probability of each explained token, T of them.

    Returns:
        list[visualization.VisualizationDataRecord]: one for each explained token.
    """
    tokens = [_escaped(token) for token in input_tokens]
    records = []
    for token, weights, probability in zip(output_tokens, token_attr, output_probs):
        largest = float(weights.abs().max()) if weights.numel() else 0.0
        name = _escaped(token)
        records.append(
            visualization.VisualizationDataRecord(
                word_attributions=weights / largest if largest > 0 else weights,
                pred_prob=probability,
                pred_class=name,
                true_class=name,
                attr_class=name,
                attr_score=float(weights.sum()),
                raw_input_ids=tokens,
                convergence_score=0.0,
            )
        )
    return records


def _label_columns(axes: Any, tokens: Sequence[str], texts: PlotText) -> None:
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False)
    texts.write_ticks(axes.xaxis, tokens)
    for label in axes.get_xticklabels():
        label.set(rotation=-30, ha="right", rotation_mode="anchor")


def _escaped(token: str) -> str:
    return html.escape(token.replace("\n", "\\n"))
