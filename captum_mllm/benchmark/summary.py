"""The numbers of a run: every column of every table, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captum_mllm.benchmark.columns import (
    AGREEMENT,
    COMPARED,
    FAITHFULNESS,
    LOCALIZATION,
    TARGETS,
    Column,
)
from captum_mllm.benchmark.estimates import RESAMPLES, Estimates, estimate
from captum_mllm.benchmark.record import Record
from captum_mllm.benchmark.score import Scores

# For each column of a table, by its title, the estimate of each row.
Table = dict[str, Estimates]


@dataclass(frozen=True)
class Summary:
    r"""
    The tables of one model on captions of one style.

    Args:
        model (str): The model's name.
        style (str): The style of the captions.
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
    The tables of each model and style.

    Args:
        records (Sequence[Record]): Those of a run.
        reference (str): The method that the others are compared with.
        resamples (int): Resamples of the bootstrap. Default: 10000

    Returns:
        list[Summary]: In the order in which models and styles first come.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.model, record.style), []).append(record)
    summaries = []
    for (model, style), group in groups.items():
        group.sort(key=lambda record: record.number)
        methods = [record.methods for record in group]
        tables = {
            "localization": _table(methods, LOCALIZATION, resamples),
            "faithfulness": _table(methods, FAITHFULNESS, resamples),
            "comparison": _table(methods, COMPARED, resamples, reference),
            "targets": _table([record.targets for record in group], TARGETS, resamples),
            "agreement": _table([record.agreement for record in group], AGREEMENT, resamples),
        }
        summaries.append(Summary(model, style, len(group), tables, reference))
    return summaries


def _table(
    pictures: list[dict[str, Scores]],
    columns: Sequence[Column],
    resamples: int,
    reference: str | None = None,
) -> Table:
    found = {column.title: estimate(pictures, column, reference, resamples) for column in columns}
    return {title: column for title, column in found.items() if column}
