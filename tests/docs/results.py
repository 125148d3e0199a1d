"""The data in ``docs/results``: rows of each file, and the numbers that pages and figures need."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "results"
MODELS = {
    "demo/qwen2-vl": "Qwen2-VL",
    "demo/llava-1.5": "LLaVA-1.5",
    "demo/internvl": "InternVL",
}

Row = dict[str, str]


class Value(NamedTuple):
    r"""
    A number with its 95 % interval.

    Args:
        value (float): the number.
        low (float): lower end of the interval.
        high (float): upper end.
        excludes_0 (bool): of differences, whether the interval excludes 0. Default: False
    """

    value: float
    low: float
    high: float
    excludes_0: bool = False


@cache
def read(name: str) -> tuple[Row, ...]:
    r"""The rows of a file.

    Args:
        name (str): such as ``"cost"`` or ``"benchmark/default"``.
    """
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def select(name: str, **wanted: object) -> list[Row]:
    r"""The rows of a file with these values.

    Args:
        name (str): see :func:`read`.
        **wanted (object): values by column, with ``_`` for a space.

    Raises:
        LookupError: if there are none.
    """
    pairs = {key.replace("_", " "): str(value) for key, value in wanted.items()}
    found = [row for row in read(name) if all(row[key] == each for key, each in pairs.items())]
    if not found:
        raise LookupError(f"{name}.csv has no row with {pairs}")
    return found


def benchmark(model: str, method: str, score: str, style: str = "all") -> Value | None:
    r"""A score of the benchmark, in percent; None where it was not measured.

    Args:
        model (str): one of ``MODELS``.
        method (str): its name in the benchmark.
        score (str): its column; ``"difference in ..."`` is that from ``attended-lens-msea``.
        style (str): of the captions. Default: all together
    """
    (row,) = select(f"benchmark/{model.removeprefix('demo/')}", style=style, method=method)
    if not row[score]:
        return None
    low, high = float(row[f"{score} low"]), float(row[f"{score} high"])
    return Value(float(row[score]), low, high, row.get(f"{score} excludes 0") == "yes")


def scores(method: str, score: str) -> list[float]:
    r"""A score of the benchmark on each of ``MODELS``, in percent."""
    found = [benchmark(model, method, score) for model in MODELS]
    return [each.value for each in found if each is not None]


def default(method: str, score: str) -> list[tuple[float, float | None]]:
    r"""On each model, a score of a variant of the default, and its difference from the default,
    None where its interval holds 0."""
    found = []
    for model in MODELS:
        (row,) = select("benchmark/default", model=model, method=method, metric=score)
        found.append((float(row["value"]), float(row["difference"]) if row["difference"] else None))
    return found


def cost(what: str, quantity: str = "x bare", **wanted: object) -> list[float]:
    r"""What was measured of the cost of something, in the order of the file."""
    rows = select("cost", what=what, quantity=quantity, **wanted)
    return [float(row["value"]) for row in rows]


def text_truth(weights: str, score: str = "text correlation") -> dict[str, Value]:
    r"""How well weights of earlier words agree with leaving words out, by model."""
    rows = select("text_truth", weights=weights, score=score)
    return {
        row["model"]: Value(float(row["value"]), float(row["low"]), float(row["high"]))
        for row in rows
    }
