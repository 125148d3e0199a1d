"""What the costs are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.cost.methods import (
    ARC_LENS,
    AT_ONCE,
    AT_ONCE_OWN,
    EXPLAINED,
    EXPLAINED_ARC,
    FOUR,
    GENERATE,
    LENS,
    LENS_SCALES,
    ONE,
    PLAIN,
    PLAIN_AFTER,
    SINGLY,
    SINGLY_OWN,
    STREAMED,
    TAM_AFTER,
    TAM_LENS,
)
from tests.cost.results import Result


@dataclass(frozen=True)
class Target:
    r"""A ratio and its limit.

    Args:
        text (str): what is compared with what.
        ratio (Callable): the ratio of a result; None where it was not measured.
        limit (float): the largest, or smallest, ratio that is aimed for.
        at_least (bool): whether the limit is the smallest one. Default: False
    """

    text: str
    ratio: Callable[[Result], float | None]
    limit: float
    at_least: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit


def _time(name: str, other: str) -> Callable[[Result], float | None]:
    return lambda result: result.time_ratio(name, other)


def _peak(name: str, other: str) -> Callable[[Result], float | None]:
    return lambda result: result.peak_ratio(name, other)


def _share_above_bare(result: Result) -> float | None:
    above = result.above_bare(ARC_LENS)
    return None if above is None else above / result.time(ARC_LENS)


TARGETS = (
    Target("time, LogitLens / bare pass", _time(LENS, ONE), 1.05),
    Target("time, ARC(LogitLens) / bare pass", _time(ARC_LENS, ONE), 1.10),
    Target("time, MSEA(LogitLens) / four bare passes", _time(LENS_SCALES, FOUR), 1.05),
    Target("time, generating and LogitLens / generating", _time(EXPLAINED, GENERATE), 1.03),
    Target("time, generating and ARC / generating", _time(EXPLAINED_ARC, GENERATE), 1.03),
    Target("time, streaming ARC / generating", _time(STREAMED, GENERATE), 1.03),
    Target("time, own answers singly / in a batch", _time(SINGLY_OWN, AT_ONCE_OWN), 2, True),
    Target("time, given answers singly / in a batch", _time(SINGLY, AT_ONCE), 2, True),
    Target("time after the pass, plain TAM / TAM", _time(PLAIN_AFTER, TAM_AFTER), 100, True),
    Target("peak memory, LogitLens / bare pass", _peak(LENS, ONE), 1.1),
    Target("peak memory, TAM(LogitLens) / bare pass", _peak(TAM_LENS, ONE), 1.1),
    Target("peak memory, ARC(LogitLens) / bare pass", _peak(ARC_LENS, ONE), 1.1),
    Target("peak memory, TAM(LogitLens) / plain TAM", _peak(TAM_LENS, PLAIN), 0.1),
    Target("share of time above the bare pass, ARC(LogitLens)", _share_above_bare, 0.05),
)
