"""Phrases in an answer are whole words."""

from __future__ import annotations

import pytest

from captum_mllm.datasets.entries import find_phrase


@pytest.mark.parametrize(
    ("answer", "phrase", "place"),
    [
        ("A car and a Car.", "Car", 12),
        ("A carpet.", "car", None),
        ("scar car", "car", 5),
        ("A RED star", "red star", 2),
        ("一只红猫", "猫", None),
        ("x", "", None),
        ("end.", ".", 3),
    ],
)
def test_phrases_are_whole_words(answer: str, phrase: str, place: int | None) -> None:
    assert find_phrase(answer, phrase) == place
