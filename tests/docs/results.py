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
#: With the one around a pretrained language model.
REAL = "demo/smolvlm"
ALL_MODELS = {**MODELS, REAL: "SmolVLM"}
#: The LLaVA-1.5, trained without losses on its image tokens; it does not ship.
TWIN = "llava-1.5-answers-only"
DEFAULT = "arc-attended-lens-msea"

Row = dict[str, str]
#: Of fewer pairs that a model says right, nothing is told.
FEWEST_PAIRS = 5


class Value(NamedTuple):
    r"""
    A number with its 95 % interval.

    Args:
        value (float): the number.
        low (float): lower end of the interval.
        high (float): upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_0(self) -> bool:
        """Of differences, whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@cache
def read(name: str) -> tuple[Row, ...]:
    r"""The rows of a file.

    Args:
        name (str): such as ``"cost"`` or ``"benchmark/internvl"``.
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
        score (str): its name; ``"difference in ..."`` is that from the default.
        style (str): of the captions. Default: all together
    """
    row = _benchmark(model).get((style, method, score))
    return None if row is None else _value(row)


@cache
def _benchmark(model: str) -> dict[tuple[str, str, str], Row]:
    rows = read(f"benchmark/{model.removeprefix('demo/')}")
    return {(row["style"], row["method"], row["score"]): row for row in rows}


def _value(row: Row) -> Value:
    return Value(*(float(row[key]) for key in ("value", "low", "high")))


def scores(method: str, score: str) -> list[float]:
    r"""A score of the benchmark on each of ``MODELS``, in percent."""
    found = [benchmark(model, method, score) for model in MODELS]
    return [each.value for each in found if each is not None]


def cost(what: str, quantity: str = "x bare", **wanted: object) -> list[float]:
    r"""What was measured of the cost of something, in the order of the file."""
    rows = select("cost", what=what, quantity=quantity, **wanted)
    return [float(row["value"]) for row in rows]


def text_truth(weights: str, score: str = "text correlation") -> dict[str, Value]:
    r"""How well weights of earlier words agree with leaving words out, by model."""
    rows = select("text_truth", weights=weights, score=score)
    return {row["model"]: _value(row) for row in rows}


def reference_words(weights: str, kind: str, words: str) -> dict[str, Value]:
    r"""How often the largest weight is on the word that decides, by model; not of a model that says
    fewer than ``FEWEST_PAIRS`` pairs right."""
    rows = select("reference_words", weights=weights, kind=kind, words=words)
    return {row["model"]: _value(row) for row in rows if int(row["pairs"]) >= FEWEST_PAIRS}
