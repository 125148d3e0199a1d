"""The data of the benchmark: ``python -m tests.docs.benchmark_data FOLDER ...`` writes it from what
``captum-mllm benchmark`` left in folders."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.docs.results import FOLDER

COLUMNS = ("style", "method", "score", "value", "low", "high", "images")
TABLES = ("localization", "faithfulness", "comparison")


def rows(summary: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    r"""The scores of all methods, and their differences from the reference, in percent.

    Args:
        summary (dict): that of a model and a style, from ``results.json``.
    """
    for name in TABLES:
        for score, found in summary["tables"][name].items():
            title = f"difference in {score}" if name == "comparison" else score
            for method, each in found.items():
                numbers = (f"{100 * each[key]:.2f}" for key in ("value", "low", "high"))
                yield summary["style"], method, title, *numbers, str(each["images"])


def merged(runs: Iterable[Iterable[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    r"""Rows of several runs; what an earlier run measured is not taken from a later one."""
    kept: dict[tuple[str, ...], tuple[str, ...]] = {}
    for run in runs:
        for row in run:
            kept.setdefault(row[:3], row)
    return list(kept.values())


def main(folders: Sequence[str]) -> None:
    r"""Write a file for each model.

    Args:
        folders (Sequence[str]): those of runs, the main one first.
    """
    models: dict[str, list[list[tuple[str, ...]]]] = {}
    for folder in folders:
        for summary in json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")):
            models.setdefault(summary["model"], []).append(list(rows(summary)))
    for model, runs in models.items():
        path = FOLDER / "benchmark" / f"{Path(model).name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(merged(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
