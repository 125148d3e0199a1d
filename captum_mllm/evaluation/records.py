"""``Score`` and ``Record``: what a run finds of one sample, as a line of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Score(NamedTuple):
    r"""
    A score summed over the words of an image.

    Args:
        total (float): The sum.
        words (float): Over how many words; 0 where none could be scored.
    """

    total: float
    words: float

    @classmethod
    def of(cls, values: Tensor) -> Score:
        r"""The score of words one by one, (n,)."""
        return cls(float(values.sum()), float(len(values)))

    def plus(self, other: Score) -> Score:
        r"""The score over the words of both."""
        return Score(self.total + other.total, self.words + other.words)


#: The score of each metric, by its name.
Scores = dict[str, Score]

#: Where there is nothing to score.
NOTHING = Score(0.0, 0.0)


@dataclass(frozen=True)
class Record:
    r"""
    The scores of one image.

    Args:
        model (str): The model's name.
        style (str): The style of the caption.
        number (int): Which example of the split.
        methods (dict[str, Scores]): For each method the score of each metric.
        targets (dict[str, Scores]): For each scale what the model says of the caption there.
        agreement (dict[str, Scores]): For each base how alike its maps are at different scales.
        id (str): What the sample is called in its data. Default: nothing
        facts (dict[str, Any]): What the model answered, and the like. Default: nothing
        error (str): Why the sample was not scored. Default: nothing, it was
    """

    model: str
    style: str
    number: int
    methods: dict[str, Scores]
    targets: dict[str, Scores]
    agreement: dict[str, Scores]
    id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two records of a run share."""
        return self.model, self.style, self.number

    def to_json(self) -> str:
        """The record as one line; numbers come back from it exactly."""
        return json.dumps(vars(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        r"""
        Read a line that :meth:`to_json` wrote.

        Raises:
            ValueError: If the line is something else.
        """
        try:
            entries = json.loads(line)
            for name in ("methods", "targets", "agreement"):
                entries[name] = {
                    row: {metric: Score(*score) for metric, score in scores.items()}
                    for row, scores in entries[name].items()
                }
            return cls(**entries)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record of the benchmark: {error!r}") from error
