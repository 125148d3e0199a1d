"""Figures of a run: bars with intervals, and a sheet of example maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from captum_mllm import MLLM
from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.catalogue import METHODS
from captum_mllm.evaluation.columns import FAITHFULNESS, LOCALIZATION
from captum_mllm.evaluation.examples import Example
from captum_mllm.evaluation.method import Method
from captum_mllm.evaluation.summary import Summary
from captum_mllm.metrics.aligned_maps import resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The columns that the bars show.
SHOWN = ("F1-IoU", "pointing", "insertion - deletion", "causal correlation")

_COLORS = {
    "method": "#3b6fb6",
    "combination": "#3f9b6b",
    "sweep": "#9db8dd",
    "control": "#b0b0b0",
}


def plot_bars(summary: Summary) -> Figure:
    r"""
    A bar with its interval for each method and each of some columns.

    Args:
        summary (Summary): The tables of a model and a style.

    Returns:
        matplotlib.figure.Figure: One axis for each of :data:`SHOWN` that was measured.
    """
    from matplotlib.figure import Figure

    tables = summary.tables["localization"] | summary.tables["faithfulness"]
    shown = [column.title for column in (*LOCALIZATION, *FAITHFULNESS) if column.title in SHOWN]
    shown = [title for title in shown if title in tables]
    known = set().union(*(tables[title] for title in shown)) if shown else set()
    rows = [name for name in METHODS if name in known]
    figure = Figure(figsize=(2 + 3 * max(len(shown), 1), 1 + 0.2 * len(rows)), layout="tight")
    places = range(len(rows), 0, -1)
    axes = figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    for axis, title in zip(axes, shown):
        for place, row in zip(places, rows):
            found = tables[title].get(row)
            if found is None:
                continue
            below, above = found.value - found.low, found.high - found.value
            color = _COLORS[METHODS[row].role]
            error = [[max(below, 0)], [max(above, 0)]]
            axis.barh(place, found.value, 0.75, color=color, xerr=error, error_kw={"lw": 0.8})
        axis.set_title(title, fontsize=9)
        axis.axvline(0, color="black", lw=0.5)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(list(places), rows)
    axes[0].set_ylim(0.3, len(rows) + 0.7)
    figure.suptitle(summary.title, fontsize=9)
    return figure


def plot_maps(mllm: MLLM, example: Example, methods: Sequence[Method]) -> Figure:
    r"""
    The maps of a caption's nouns, a row for each method and a column for each noun.

    Each map is shown from 0 to its own largest value.

    Args:
        mllm (MLLM): The model.
        example (Example): A captioned picture with at least one noun that speaks of an object.
        methods (Sequence[Method]): The methods.

    Returns:
        matplotlib.figure.Figure: The sheet.
    """
    from matplotlib.figure import Figure

    case = Case(mllm, example)
    nouns = case.nouns
    size = (len(methods), max(len(nouns), 1))
    figure = Figure(figsize=(1.6 * size[1] + 1.4, 1.6 * size[0] + 0.6), layout="tight")
    axes = figure.subplots(*size, squeeze=False)
    picture = example.picture
    with case.sharing():
        for row, method in zip(axes, methods):
            maps = method.explain(case).detach().float().cpu().clamp_min(0)
            shown = resize(case.of_words(maps, nouns), (picture.height, picture.width))
            for axis, place, each in zip(row, nouns, shown):
                top = float(each.max())
                axis.imshow(picture)
                axis.imshow(each, cmap="inferno", alpha=0.6, vmin=0, vmax=top if top > 0 else 1)
                axis.contour(
                    example.region(place).to(torch.uint8), [0.5], colors="cyan", linewidths=0.7
                )
                axis.set(xticks=[], yticks=[])
            row[0].set_ylabel(method.name, fontsize=7)
    for axis, place in zip(axes[0], nouns):
        axis.set_title(example.caption.words[place], fontsize=8)
    figure.suptitle(str(example.caption), fontsize=7)
    return figure


def save(figure: Figure, path: Path) -> None:
    r"""Write a figure to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and the version of the library, so that equal figures are equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})
