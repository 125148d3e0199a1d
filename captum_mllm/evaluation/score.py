"""Scores of a picture's words, as they are summed up over pictures."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Score(NamedTuple):
    r"""
    A score summed over the words of a picture.

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
