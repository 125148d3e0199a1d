"""The numbers of a run: every column of every table, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captum_mllm.evaluation.columns import (
    AGREEMENT,
    COMPARED,
    FAITHFULNESS,
    LOCALIZATION,
    TARGETS,
    Column,
)
from captum_mllm.evaluation.estimates import RESAMPLES, Estimates, estimate
from captum_mllm.evaluation.record import Record
from captum_mllm.evaluation.score import NOTHING, Scores

#: The style of a summary of all captions of each scene.
ALL_STYLES = "all"

# For each column of a table, by its title, the estimate of each row.
Table = dict[str, Estimates]


@dataclass(frozen=True)
class Summary:
    r"""
    The tables of one model on captions of one style, or of all styles together.

    Args:
        model (str): The model's name.
        style (str): The style of the captions, or :data:`ALL_STYLES`.
        pictures (int): How many there are.
        tables (dict[str, dict]): ``"localization"``, ``"faithfulness"``, ``"targets"`` (a row for
            each scale), ``"agreement"`` (a row for each base), and ``"comparison"``, how each
            method differs from the reference.
        reference (str): The method that the others are compared with.
    """

    model: str
    style: str
    pictures: int
    tables: dict[str, Table]
    reference: str

    @property
    def title(self) -> str:
        """What it is of, for headings."""
        style = "all styles" if self.style == ALL_STYLES else f"style {self.style}"
        return f"{self.model}, {style}, {self.pictures} pictures"

    def to_dict(self) -> dict[str, Any]:
        """The same in values of JSON."""
        tables = {
            name: {
                title: {row: each._asdict() for row, each in column.items()}
                for title, column in table.items()
            }
            for name, table in self.tables.items()
        }
        return {**vars(self), "tables": tables}


def summarize(
    records: Sequence[Record], reference: str, resamples: int = RESAMPLES
) -> list[Summary]:
    r"""
    The tables of each model and style, and of each model on all styles if there are several.

    The captions of a scene in different styles are no independent samples, so that all of them
    together count as one picture in the bootstrap.

    Args:
        records (Sequence[Record]): Those of a run.
        reference (str): The method that the others are compared with.
        resamples (int): Resamples of the bootstrap. Default: 10000

    Returns:
        list[Summary]: In the order in which models and styles first come.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record.number):
        groups.setdefault(record.model, {}).setdefault(record.style, []).append(record)
    for styles in groups.values():
        if len(styles) > 1:
            styles[ALL_STYLES] = _by_scene([each for group in styles.values() for each in group])
    summaries = []
    for group in (group for styles in groups.values() for group in styles.values()):
        methods = [record.methods for record in group]
        tables = {
            "localization": _table(methods, LOCALIZATION, resamples),
            "faithfulness": _table(methods, FAITHFULNESS, resamples),
            "comparison": _table(methods, COMPARED, resamples, reference),
            "targets": _table([record.targets for record in group], TARGETS, resamples),
            "agreement": _table([record.agreement for record in group], AGREEMENT, resamples),
        }
        summaries.append(Summary(group[0].model, group[0].style, len(group), tables, reference))
    return summaries


def _by_scene(records: Sequence[Record]) -> list[Record]:
    """One record for each scene, with the scores of all its captions."""
    scenes: dict[int, list[Record]] = {}
    for record in records:
        scenes.setdefault(record.number, []).append(record)
    return [
        Record(
            model=group[0].model,
            style=ALL_STYLES,
            number=number,
            methods=_sum_scores([record.methods for record in group]),
            targets=_sum_scores([record.targets for record in group]),
            agreement=_sum_scores([record.agreement for record in group]),
        )
        for number, group in sorted(scenes.items())
    ]


def _sum_scores(rows: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    for row in rows:
        for name, scores in row.items():
            sums = found.setdefault(name, {})
            for metric, score in scores.items():
                sums[metric] = sums.get(metric, NOTHING).plus(score)
    return found


def _table(
    pictures: list[dict[str, Scores]],
    columns: Sequence[Column],
    resamples: int,
    reference: str | None = None,
) -> Table:
    found = {column.title: estimate(pictures, column, reference, resamples) for column in columns}
    return {title: column for title, column in found.items() if column}
