"""Scores of answers: ``yes_no_scores``, POPE's protocol; ``auroc``, whether a score tells right
answers from wrong ones; and ``rouge_l``, how near a caption is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any


def said_yes(answer: str) -> bool:
    r"""
    Whether an answer says yes, by the rule of POPE: no word of its first sentence says no.

    Source: "Evaluating Object Hallucination in Large Vision-Language Models" (Li et al., EMNLP
    2023, https://arxiv.org/abs/2305.10355).

    Args:
        answer (str): The answer.

    Examples::

        >>> said_yes("Yes, there is no doubt."), said_yes("Yes. Not a small one.")
        (False, True)
    """
    words = answer.strip().split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def yes_no_scores(facts: Sequence[dict[str, Any]]) -> dict[str, float]:
    r"""
    How answers to yes/no questions agree with their labels.

    Args:
        facts (Sequence[dict]): Of each question its ``"label"`` and what was ``"said"``, ``"yes"``
            or ``"no"``; others are passed over.

    Returns:
        dict[str, float]: How many ``"questions"``; ``"accuracy"``; ``"precision"``, ``"recall"``
        and ``"f1"`` of yes, 0 where they are not defined; and ``"yes_ratio"``, the share of answers
        that say yes. Empty where there is no question.

    Examples::

        >>> facts = [{"label": "yes", "said": "yes"}, {"label": "no", "said": "yes"}]
        >>> scores = yes_no_scores(facts)
        >>> scores["accuracy"], scores["yes_ratio"]
        (0.5, 1.0)
    """
    pairs = [(row["label"] == "yes", row["said"] == "yes") for row in facts if "said" in row]
    if not pairs:
        return {}
    right = sum(label and said for label, said in pairs)
    true, found = sum(label for label, _ in pairs), sum(said for _, said in pairs)
    return {
        "questions": float(len(pairs)),
        "accuracy": sum(label == said for label, said in pairs) / len(pairs),
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (true + found) if true + found else 0.0,
        "yes_ratio": found / len(pairs),
    }


def auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float | None:
    r"""
    Area under the receiver operating characteristic of a score: the chance that a right answer has
    a larger one than a wrong answer, where equal ones count half.

    Args:
        scores (Sequence[float]): The score of each answer, finite.
        is_right (Sequence[bool]): Whether it is right.

    Returns:
        float or None: In [0, 1], 0.5 for chance; None where all answers are right, or all wrong.

    Examples::

        >>> auroc([0.9, 0.2, 0.6, 0.6], [True, False, True, False])
        0.875
    """
    order = sorted(range(len(scores)), key=scores.__getitem__)
    n_right = sum(is_right)
    n_wrong = len(order) - n_right
    if not n_right or not n_wrong:
        return None
    ranks, place = 0.0, 0
    for _, group in groupby(order, key=scores.__getitem__):
        tied = list(group)
        # Ranks from 1; those that are equal share their mean.
        ranks += (place + (len(tied) + 1) / 2) * sum(is_right[each] for each in tied)
        place += len(tied)
    return (ranks - n_right * (n_right + 1) / 2) / (n_right * n_wrong)


def rouge_l(answer: str, references: Sequence[str], beta: float = 1.2) -> float:
    r"""
    ROUGE-L of a caption: the F-measure of the longest common subsequence of words, of the best
    precision and the best recall over the references.

    Source: "ROUGE: A Package for Automatic Evaluation of Summaries" (Lin, 2004), as the evaluation
    of COCO captions has it.

    Args:
        answer (str): The caption.
        references (Sequence[str]): At least one.
        beta (float): Weight of recall. Default: 1.2

    Returns:
        float: In [0, 1].

    Examples::

        >>> round(rouge_l("a red star", ["A star.", "a red ring"]), 4)
        0.8299
    """
    words = _words(answer)
    precision = recall = 0.0
    for reference in map(_words, references):
        common = _common(words, reference)
        precision = max(precision, common / len(words) if words else 0.0)
        recall = max(recall, common / len(reference) if reference else 0.0)
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
