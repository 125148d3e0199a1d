"""Estimates of the columns for each method, with paired bootstrap intervals over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.evaluation.columns import Column
from captum_mllm.evaluation.score import NOTHING, Scores
from captum_mllm.metrics import paired_bootstrap

RESAMPLES = 10000


class Estimate(NamedTuple):
    r"""
    A statistic and its 95 % interval.

    Args:
        value (float): The statistic of the pictures as they are.
        low (float): Lower end of the interval.
        high (float): Upper end.
        pictures (int): How many pictures it rests on.
    """

    value: float
    low: float
    high: float
    pictures: int


# For each method, the estimate of a column; methods without a score are left out.
Estimates = dict[str, Estimate]


def estimate(
    pictures: Sequence[dict[str, Scores]],
    column: Column,
    reference: str | None = None,
    resamples: int = RESAMPLES,
) -> Estimates:
    r"""
    A column for each method, or how each differs from one of them.

    In each resample the same pictures are drawn for all methods. A method that was not run on
    some pictures is compared with the reference on those on which both were.

    Args:
        pictures (Sequence[dict[str, Scores]]): For each picture the scores of each method.
        column (Column): The statistic.
        reference (str, optional): The method whose value is subtracted. Default: None, no method.
        resamples (int): Number of resamples. Default: 10000

    Returns:
        dict[str, Estimate]: For each method that was scored; without the reference.
    """
    # Each tensor has a row for each picture and a column for each method.
    names = list(dict.fromkeys(name for picture in pictures for name in picture))
    if not names or (reference is not None and reference not in names):
        return {}
    means = _table(pictures, names, column)
    counts = torch.stack(means[1::2])
    if reference is not None:
        base = [mean[:, names.index(reference), None] for mean in means]
        both = ((counts > 0) & (torch.stack(base[1::2]) > 0)).any(0)
        # Not of this comparison: pictures that only one of the two has.
        means = [mean * both for mean in (*means, *base)]
        counts = torch.stack(means[1 : 2 * len(column.scores) : 2])
    used = (counts > 0).any(0).sum(0)
    half = 2 * len(column.scores)

    def statistic(*parts: Tensor) -> Tensor:
        value = column.statistic(*parts[:half])
        return value - column.statistic(*parts[half:]) if reference is not None else value

    found = paired_bootstrap(statistic, *means, resamples=resamples)
    return {
        name: Estimate(
            float(found.estimate[index]),
            float(found.low[index]),
            float(found.high[index]),
            int(used[index]),
        )
        for index, name in enumerate(names)
        if used[index] and name != reference
    }


def _table(
    pictures: Sequence[dict[str, Scores]], names: Sequence[str], column: Column
) -> list[Tensor]:
    """Total and count of each score of the column in turn, (pictures, methods) each."""
    tables: list[Tensor] = []
    for score in column.scores:
        rows = [
            [picture.get(name, {}).get(score, NOTHING) for name in names] for picture in pictures
        ]
        tables += torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return tables
