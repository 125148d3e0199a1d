"""``diagnosis_report``: how well risks tell words that their images do not show from others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.evaluation.labelled_words import LabelledWords
from captum_mllm.explain.calibration import Calibration, calibration_error
from captum_mllm.explain.signals import SIGNALS

#: Signals that are compared with the diagnosis, by the names of the literature.
RIVALS = {
    "word probability": "probability",
    "internal confidence": "lens confidence",
    "attention mass": "image attention",
    "image gain": "image gain",
}
_CONFIDENT = 0.5
# Limits of the bins in which words are matched in probability.
_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)


class Score(NamedTuple):
    r"""
    The area under a receiver operating characteristic, with its interval.

    Args:
        name (str): what was scored.
        auroc (float): in [0, 1].
        low (float): lower end of the interval of 95 percent.
        high (float): upper end.
    """

    name: str
    auroc: float
    low: float
    high: float


class Report(NamedTuple):
    r"""
    Scores of the diagnosis and of its rivals.

    Args:
        easy (list[Score]): on all words.
        easy_counts (tuple[int, int]): how many words are shown, and how many are not.
        matched (list[Score]): on the confident ones, of probability at least 0.5, where words that
            are shown are weighted to have the probabilities of those that are not.
        matched_counts (tuple[int, int]): as before.
        calibration_error (float): of the risks, on all words.
        lead (Score): by how much the diagnosis is above the best rival on the confident words, with
            the interval of the difference on the same words.
    """

    easy: list[Score]
    easy_counts: tuple[int, int]
    matched: list[Score]
    matched_counts: tuple[int, int]
    calibration_error: float
    lead: Score

    def __str__(self) -> str:
        lines = []
        for title, scores, (shown, absent) in (
            ("all words", self.easy, self.easy_counts),
            ("confident words, matched in probability", self.matched, self.matched_counts),
        ):
            lines.append(f"{title}: {shown} shown, {absent} not shown")
            lines += [f"  {s.name:<20} {s.auroc:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in scores]
        name, lead, low, high = self.lead
        lines.append(f"diagnosis above {name} by {lead:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"calibration error {self.calibration_error:.3f}")
        return "\n".join(lines)


def diagnosis_report(
    words: LabelledWords, calibration: Calibration, resamples: int = 500, seed: int = 0
) -> Report:
    r"""
    Compare the risks of a calibration with single signals.

    Args:
        words (LabelledWords): words that the calibration was not fitted on.
        calibration (Calibration): what combines their signals.
        resamples (int): of the groups, for the intervals. Default: 500
        seed (int): of the resamples. Default: 0
    """
    risks = calibration.risk(words.signals)
    scores = {"diagnosis": risks}
    for name, signal in RIVALS.items():
        scores[name] = -words.signals[:, SIGNALS.index(signal)].double()
    if words.contextual is not None:
        scores["contextual lens"] = -words.contextual.double()
    weights = torch.ones(len(risks), dtype=torch.float64)
    chosen, matching = match_probabilities(words.probability, words.absent)
    members = _members(words.groups)
    draws = _draws(int(members.max()) + 1, resamples, seed)

    def rate(weights: Tensor) -> dict[str, Tensor]:
        """The area of each score, then those of the resamples."""
        rows = torch.cat([torch.ones_like(draws[:1]), draws])[:, members] * weights
        return {
            name: torch.tensor([auroc(each, words.absent, row) for row in rows])
            for name, each in scores.items()
        }

    easy, matched = rate(weights), rate(matching)
    best = max((name for name in scores if name != "diagnosis"), key=lambda n: float(matched[n][0]))
    return Report(
        easy=[_score(name, values) for name, values in easy.items()],
        easy_counts=_counts(words.absent),
        matched=[_score(name, values) for name, values in matched.items()],
        matched_counts=_counts(words.absent[chosen]),
        calibration_error=calibration_error(risks, words.absent),
        lead=_score(best, matched["diagnosis"] - matched[best]),
    )


def match_probabilities(probability: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    Weights by which confident words that are shown have the probabilities of those that are not.

    Within each bin of probability the words that are shown weigh together as much as the others;
    bins without words of both kinds are left out.

    Args:
        probability (Tensor): of shape (N,).
        absent (Tensor): bool, (N,).

    Returns:
        tuple[Tensor, Tensor]: which words count, bool, and their weights, (N,) each.
    """
    bins = torch.bucketize(probability.double(), torch.tensor(_LIMITS, dtype=torch.float64))
    chosen = torch.zeros_like(absent)
    weights = torch.zeros(len(absent), dtype=torch.float64)
    for index in bins[probability >= _CONFIDENT].unique():
        inside = (bins == index) & (probability >= _CONFIDENT)
        gone, there = inside & absent, inside & ~absent
        if gone.any() and there.any():
            chosen |= inside
            weights[gone] = 1.0
            weights[there] = float(gone.sum()) / float(there.sum())
    return chosen, weights


def auroc(scores: Tensor, absent: Tensor, weights: Tensor) -> float:
    r"""
    The weighted share of pairs in which the word that is not shown scores higher; ties count half.

    Args:
        scores (Tensor): of shape (N,).
        absent (Tensor): bool, (N,).
        weights (Tensor): at least 0, (N,).

    Returns:
        float: in [0, 1]; NaN without weight on both kinds.
    """
    order = scores.argsort(stable=True)
    _, level = scores[order].unique_consecutive(return_inverse=True)
    count = int(level.max()) + 1
    positive = weights.new_zeros(count).index_add_(0, level, (weights * absent)[order])
    negative = weights.new_zeros(count).index_add_(0, level, (weights * ~absent)[order])
    below = negative.cumsum(0) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def _score(name: str, values: Tensor) -> Score:
    """The first value with the interval of the others, from resampled groups."""
    estimates = values[1:][values[1:].isfinite()]
    if not len(estimates):
        return Score(name, float(values[0]), math.nan, math.nan)
    low, high = estimates.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Score(name, float(values[0]), low, high)


def _members(groups: Sequence[str]) -> Tensor:
    """The number of the group of each word."""
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))
    return torch.tensor([numbers[group] for group in groups])


def _draws(n_groups: int, resamples: int, seed: int) -> Tensor:
    """How often each group is drawn in each resample, (resamples, groups)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_groups, (resamples, n_groups), generator=generator)
    counts = torch.zeros(resamples, n_groups, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _counts(absent: Tensor) -> tuple[int, int]:
    return int((~absent).sum()), int(absent.sum())
