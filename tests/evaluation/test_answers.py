"""Answers to yes/no questions and captions, against slow twins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import pytest

from captum_mllm.evaluation.answers import auroc, rouge_l, said_yes, yes_no_scores


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", True),
        ("yes, there is a dog.", True),
        ("No", False),
        ("no, there is none.", False),
        ("There is not a dog.", False),
        ("I see it. No doubt.", True),
        ("Note the dog", True),
        ("", True),
    ],
)
def test_the_rule_of_pope(answer: str, expected: bool) -> None:
    assert said_yes(answer) == expected


def test_auroc_counts_pairs() -> None:
    chance = random.Random(0)
    for count in range(2, 40):
        scores = [chance.choice([0.0, 0.25, 0.5, chance.random()]) for _ in range(count)]
        is_right = [chance.random() < 0.6 for _ in range(count)]
        pairs = [
            (right > wrong) + (right == wrong) / 2
            for right, first in zip(scores, is_right)
            for wrong, second in zip(scores, is_right)
            if first and not second
        ]
        expected = sum(pairs) / len(pairs) if pairs else None
        assert auroc(scores, is_right) == pytest.approx(expected)


def test_scores_of_yes_and_no_are_counted() -> None:
    chance = random.Random(0)
    rows = [
        {"label": chance.choice(["yes", "no"]), "said": chance.choice(["yes", "yes", "no"])}
        for _ in range(97)
    ]
    tp = fp = fn = tn = 0
    for row in rows:
        tp += row["label"] == row["said"] == "yes"
        tn += row["label"] == row["said"] == "no"
        fp += (row["label"], row["said"]) == ("no", "yes")
        fn += (row["label"], row["said"]) == ("yes", "no")
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert yes_no_scores([{"answer": "x"}, *rows]) == pytest.approx(
        {
            "questions": 97,
            "accuracy": (tp + tn) / 97,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes_ratio": (tp + fp) / 97,
        }
    )
    assert yes_no_scores([{"answer": "x"}]) == {}
    never = yes_no_scores([{"label": "no", "said": "no"}])
    assert (never["accuracy"], never["f1"], never["yes_ratio"]) == (1.0, 0.0, 0.0)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """By trying every subsequence."""

    def is_within(part: Sequence[str]) -> bool:
        rest = iter(second)
        return all(word in rest for word in part)

    lengths = range(len(first), -1, -1)
    return next(length for length in lengths if any(map(is_within, combinations(first, length))))


@pytest.mark.parametrize("seed", range(30))
def test_rouge_equals_its_definition(seed: int) -> None:
    chance = random.Random(seed)

    def draw() -> list[str]:
        return [chance.choice("abcd") for _ in range(chance.randrange(1, 8))]

    words, references = draw(), [draw() for _ in range(3)]
    lengths = [longest_common(words, each) for each in references]
    precision = max(length / len(words) for length in lengths)
    recall = max(length / len(each) for length, each in zip(lengths, references))
    expected = 0.0
    if precision and recall:
        expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    found = rouge_l(" ".join(words).upper() + ".", [" ".join(each) for each in references])
    assert found == pytest.approx(expected)
    assert rouge_l("", ["a"]) == 0.0
