"""``to_markdown``, the tables of a run, and ``plot_bars`` and ``plot_maps``, its figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from captum_mllm import MLLM
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.examples import Example
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.settings import Scoring
from captum_mllm.evaluation.summary import (
    AGREEMENT,
    COMPARED,
    FAITHFULNESS,
    LOCALIZATION,
    TAM,
    TARGETS,
    TEXT,
    Column,
    Estimate,
    Summary,
    Table,
)
from captum_mllm.explain.result_file import write_file
from captum_mllm.metrics.aligned_maps import resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How many of the rows that were skipped a report names.
_SHOWN = 20
_ROLES = {
    "method": "Methods",
    "combination": "Combinations that no paper has",
    "sweep": "Other settings and combinations",
    "control": "Controls",
}
_LEVELS = {
    None: "its own values in [0, 1]",
    "caption": "the range of all maps of a caption",
    "map": "the range of each map",
}


def to_markdown(summaries: Sequence[Summary], settings: Scoring) -> str:
    r"""
    The report of a run.

    Args:
        summaries (Sequence[Summary]): One for each model and style.
        settings (Settings): What was measured.

    Returns:
        str: Markdown; the same for the same run.
    """
    parts = [_introduction(summaries, settings)]
    for summary in summaries:
        parts.append(f"## {summary.title}")
        parts += _sections(summary)
    parts.append(_legend(settings))
    return "\n\n".join(parts) + "\n"


def _introduction(summaries: Sequence[Summary], settings: Scoring) -> str:
    return (
        f"# Benchmark\n\n{settings.describe()} Values in percent, with 95 % "
        "intervals from a bootstrap over images. A number in parentheses says on how many "
        "images a value rests, where these are not all."
    )


def _sections(summary: Summary) -> Iterable[str]:
    tables = summary.tables
    if summary.answers:
        lines = [_line(["of the model's own answers", "value"]), _line(["---", "---"])]
        lines += [_line([name, f"{value:.4g}"]) for name, value in summary.answers.items()]
        yield "### Answers\n\n" + "\n".join(lines)
    if summary.skipped:
        shown = "\n".join(f"- `{each.replace('`', chr(39))}`" for each in summary.skipped[:_SHOWN])
        yield f"### Skipped\n\n{len(summary.skipped)} rows were not scored, such as:\n\n{shown}"
    better = "↓: the lower, the better."
    for name, title, columns in (
        ("localization", "Localisation", LOCALIZATION),
        ("tam", "TAM's protocol, as published", TAM),
        ("faithfulness", "Faithfulness", FAITHFULNESS),
        ("text", "Weights of earlier words", TEXT),
    ):
        if tables[name]:
            yield f"### {title}\n\n{better}\n\n" + _by_role(tables[name], columns, summary)
    if tables["comparison"]:
        yield (
            f"### Difference from {summary.reference}\n\n"
            "On the images on which both were run. Bold: the interval excludes 0.\n\n"
            + _by_role(tables["comparison"], COMPARED, summary, signed=True)
        )
    for name, title, columns, row in (
        ("targets", "What the model says of the caption at other scales", TARGETS, "scale"),
        ("agreement", "Agreement of the maps of nouns between scales", AGREEMENT, "base"),
    ):
        if tables[name]:
            rows = list(next(iter(tables[name].values())))
            yield f"### {title}\n\n" + _markdown(tables[name], columns, rows, row, summary)


def _by_role(
    table: Table, columns: Sequence[Column], summary: Summary, signed: bool = False
) -> str:
    known = set().union(*table.values())
    parts = []
    for role, title in _ROLES.items():
        rows = [name for name, method in METHODS.items() if method.role == role and name in known]
        if rows:
            lines = _markdown(table, columns, rows, title.lower(), summary, signed)
            parts.append(lines)
    return "\n\n".join(parts)


def _markdown(
    table: Table,
    columns: Sequence[Column],
    rows: Sequence[str],
    first: str,
    summary: Summary,
    signed: bool = False,
) -> str:
    shown = [column for column in columns if column.title in table]
    heads = [column.title + ("" if column.higher_is_better else " ↓") for column in shown]
    lines = [_line([first, *heads]), _line(["---"] * (len(heads) + 1))]
    for row in rows:
        cells = [
            _cell(table[column.title].get(row), summary.images, signed, column.is_share)
            for column in shown
        ]
        lines.append(_line([row, *cells]))
    return "\n".join(lines)


def _cell(found: Estimate | None, images: int, signed: bool, percent: bool) -> str:
    if found is None:
        return ""
    factor = 100 if percent else 1
    sign = "+" if signed else ""
    value, low, high = (factor * each for each in found[:3])
    text = f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
    if signed and (found.low > 0 or found.high < 0):
        text = f"**{text}**"
    return text if found.images == images else f"{text} ({found.images})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _legend(settings: Scoring) -> str:
    lines = [
        "## Methods",
        "",
        "| method | what it is | grey levels of Obj- and Func-IoU | images |",
        "| --- | --- | --- | --- |",
    ]
    for method in select_methods(settings.methods):
        share = "all" if method.every == 1 else f"one in {method.every}"
        lines.append(_line([method.name, method.note, _LEVELS[method.levels], share]))
    return "\n".join(lines)


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
        example (Example): A captioned image with at least one noun that speaks of an object.
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
    image = example.image
    with case.sharing():
        for row, method in zip(axes, methods):
            maps = method.explain(case).detach().float().cpu().clamp_min(0)
            shown = resize(case.of_words(maps, nouns), (image.height, image.width))
            for axis, place, each in zip(row, nouns, shown):
                top = float(each.max())
                axis.imshow(image)
                axis.imshow(each, cmap="inferno", alpha=0.6, vmin=0, vmax=top if top > 0 else 1)
                axis.contour(
                    example.region(place).to(torch.uint8), [0.5], colors="cyan", linewidths=0.7
                )
                axis.set(xticks=[], yticks=[])
            row[0].set_ylabel(method.name, fontsize=7)
    for axis, place in zip(axes[0], nouns):
        axis.set_title(example.texts[place], fontsize=8)
    figure.suptitle(example.answer, fontsize=7)
    return figure


def write_report(summaries: Sequence[Summary], settings: Scoring, folder: Path) -> None:
    r"""
    Write ``results.json``, ``report.md`` and a figure of bars for each summary.

    Args:
        summaries (Sequence[Summary]): The tables.
        settings (Scoring): What was measured.
        folder (Path): The folder of the run.
    """
    results = json.dumps([summary.to_dict() for summary in summaries], indent=1) + "\n"
    write_file(folder / "results.json", results.encode("utf-8"))
    text = to_markdown(summaries, settings).encode("utf-8", "backslashreplace")
    write_file(folder / "report.md", text)
    for summary in summaries:
        name = f"{Path(summary.model).name}-{summary.style}-bars.png"
        save(plot_bars(summary), folder / "figures" / name)


def save(figure: Figure, path: Path) -> None:
    r"""Write a figure to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and the version of the library, so that equal figures are equal files.
    figure.savefig(path, dpi=110, metadata={"Software": None})
