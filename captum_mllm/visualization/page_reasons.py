"""``ReasonsView`` and ``RiskView``, what the page shows of a word beside its map and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Level = Literal["low", "some", "high"]


@dataclass(frozen=True, eq=False)
class ReasonsView:
    r"""
    What each answer token rests on.

    Args:
        names (Sequence[str]): the K parts, such as ``("image", "question", "answer", "prior")``.
        values (np.ndarray): the part of each for each answer token, of any sign, of shape (T, K).
        exact (bool): whether they were found by intervention, or else were estimated.
    """

    names: Sequence[str]
    values: np.ndarray
    exact: bool


@dataclass(frozen=True)
class RiskView:
    r"""
    The risk that the image does not show a word.

    Args:
        tokens (Sequence[int]): the answer tokens of the word.
        risk (float): in [0, 1].
        level (str): ``"low"``, ``"some"`` or ``"high"``.
        calibrated (bool): whether the risk is a probability.
        why (Sequence[str]): what makes it high, in words.
    """

    tokens: Sequence[int]
    risk: float
    level: Level
    calibrated: bool
    why: Sequence[str]


def reasons_data(
    reasons: ReasonsView | None, risks: Sequence[RiskView] | None, n_tokens: int
) -> dict[str, Any]:
    r"""
    Check reasons and risks of ``n_tokens`` answer tokens, and pack them for the page's script.

    Raises:
        ValueError: If they do not fit the answer, or a number is not finite or out of range.
    """
    data: dict[str, Any] = {"reasons": None, "risks": None}
    if reasons is not None:
        values = np.asarray(reasons.values, dtype=float)
        if values.shape != (n_tokens, len(reasons.names)) or not np.isfinite(values).all():
            raise ValueError(
                f"reasons have shape {values.shape}, expected {(n_tokens, len(reasons.names))} "
                "and finite numbers"
            )
        rounded = [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
        data["reasons"] = {
            "names": list(map(str, reasons.names)),
            "values": rounded,
            "exact": bool(reasons.exact),
        }
    if risks is not None:
        for each in risks:
            if not 0 <= each.risk <= 1 or not all(0 <= t < n_tokens for t in each.tokens):
                raise ValueError(
                    f"got {each}, expected a risk in [0, 1] and tokens from 0 to {n_tokens - 1}"
                )
        data["risks"] = [
            {
                "tokens": list(each.tokens),
                "risk": each.risk,
                "level": each.level,
                "calibrated": each.calibrated,
                "why": list(each.why),
            }
            for each in risks
        ]
    return data
