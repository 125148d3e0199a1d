"""The benchmark's tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.columns import (
    AGREEMENT,
    COMPARED,
    FAITHFULNESS,
    LOCALIZATION,
    TARGETS,
    Column,
)
from captum_mllm.evaluation.estimates import Estimate
from captum_mllm.evaluation.settings import Settings
from captum_mllm.evaluation.summary import Summary, Table

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


def to_markdown(summaries: Sequence[Summary], settings: Settings) -> str:
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


def _introduction(summaries: Sequence[Summary], settings: Settings) -> str:
    return (
        "# Benchmark\n\n"
        f"Split {settings.split}, seed {settings.seed}, language prior {settings.prior:g}, "
        f"contact {settings.contact:g}; "
        f"the curves of insertion and deletion have {settings.steps} steps of growing area, start "
        f"from or end with the baseline {settings.baseline!r}, follow one noun of a picture, drawn "
        f"at random, on one picture in {settings.curves_every}. Values in percent, with 95 % "
        "intervals from a bootstrap over pictures. A number in parentheses says on how many "
        "pictures a value rests, where these are not all."
    )


def _sections(summary: Summary) -> Iterable[str]:
    tables = summary.tables
    better = "↓: the lower, the better."
    for name, title, columns in (
        ("localization", "Localisation", LOCALIZATION),
        ("faithfulness", "Faithfulness", FAITHFULNESS),
    ):
        if tables[name]:
            yield f"### {title}\n\n{better}\n\n" + _by_role(tables[name], columns, summary)
    if tables["comparison"]:
        yield (
            f"### Difference from {summary.reference}\n\n"
            "On the pictures on which both were run. Bold: the interval excludes 0.\n\n"
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
            _cell(table[column.title].get(row), summary.pictures, signed, column.is_share)
            for column in shown
        ]
        lines.append(_line([row, *cells]))
    return "\n".join(lines)


def _cell(found: Estimate | None, pictures: int, signed: bool, percent: bool) -> str:
    if found is None:
        return ""
    factor = 100 if percent else 1
    sign = "+" if signed else ""
    value, low, high = (factor * each for each in found[:3])
    text = f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
    if signed and (found.low > 0 or found.high < 0):
        text = f"**{text}**"
    return text if found.pictures == pictures else f"{text} ({found.pictures})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _legend(settings: Settings) -> str:
    lines = [
        "## Methods",
        "",
        "| method | what it is | grey levels of Obj- and Func-IoU | pictures |",
        "| --- | --- | --- | --- |",
    ]
    for method in select_methods(settings.methods):
        share = "all" if method.every == 1 else f"one in {method.every}"
        lines.append(_line([method.name, method.note, _LEVELS[method.levels], share]))
    return "\n".join(lines)
