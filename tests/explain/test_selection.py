from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_mllm.explain.selection import select_tokens
from captum_mllm.models.words import group_words

TOKENS = [
    " A",
    " red",
    " st",
    "ar",
    " and",
    " a",
    " Red",
    " star",
    ",",
    " don",
    "'t",
    " US",
    "\n",
    " x",
]
WORDS = group_words(TOKENS)


def select(selection: Any) -> list[int]:
    return select_tokens(selection, TOKENS, WORDS)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, list(range(14))),
        (0, [0]),
        (-1, [13]),
        (np.int64(2), [2]),
        (np.uint8(2), [2]),
        (torch.tensor(2), [2]),
        ((1, 3), [1, 2]),
        ((-2, 14), [12, 13]),
        ((np.int32(1), np.int32(2)), [1]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, 5), [0, 5, 10]),
        (slice(None, None, -7), [13, 6]),
        (range(3, 0, -1), [3, 2, 1]),
        ([1, 2, -13], [1, 2]),
        (np.array([3, 1]), [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        (np.array(["red", "don't"]), [1, 9, 10]),
        ("red", [1]),
        (" red ", [1]),
        ("star", [2, 3]),
        ("red star", [1, 2, 3]),
        ("red   \n star", [1, 2, 3]),
        ("Red star", [6, 7]),
        ("RED STAR", [1, 2, 3]),
        ("star,", [7, 8]),
        ("don't", [9, 10]),
        ("US", [11]),
        ("us x", [11, 13]),
        (("star", 1), [2, 3]),
        (("star", 2), [7]),
        (("star", -1), [7]),
        (("star", np.int64(2)), [7]),
        (("star", None), [2, 3, 7]),
        (["red star", -1], [1, 2, 3, 13]),
        ([("star", 2), (0, 2)], [7, 0, 1]),
        (re.compile("st.r"), [2, 3]),
        (re.compile("sta"), [2, 3]),
        ((re.compile("[Rr]ed"), None), [1, 6]),
        (re.compile("a.*?n", re.IGNORECASE), [0, 1, 2, 3, 4]),
        (re.compile(r"d\s+s"), [1, 2, 3]),
        (re.compile("red(?=,)|x$"), [13]),
    ],
    ids=repr,
)
def test_a_selection_names_tokens(selection: Any, expected: list[int]) -> None:
    assert select(selection) == expected


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        (14, ValueError, "names token 14, expected positions within the 14"),
        (-15, ValueError, "names token -15"),
        (2**70, ValueError, "names token"),
        ((1, 100), ValueError, "reaches 100"),
        ((-20, 3), ValueError, "reaches -20"),
        ((3, 3), ValueError, "has no token"),
        ((4, 2), ValueError, "has no token"),
        (slice(0, 15), ValueError, "reaches 15"),
        (slice(5, 5), ValueError, "has no token"),
        (slice(1, 5, 0), ValueError, "step of 0"),
        (slice("a", None), TypeError, "expected a position"),
        (range(0), ValueError, "empty"),
        (range(10, 20), ValueError, "names token 19"),
        (range(10**30), ValueError, "names token"),
        ([], ValueError, "empty"),
        (np.array([], dtype=int), ValueError, "empty"),
        ([1, 99], ValueError, "names token 99"),
        ([1, None], TypeError, "within a list"),
        ([[1]], TypeError, "within a list"),
        (True, TypeError, "truth values"),
        (np.bool_(True), TypeError, "truth values"),
        (torch.tensor(True), TypeError, "truth values"),
        ([True, False], TypeError, "truth values"),
        ((False, 2), TypeError, "truth values"),
        (("red", True), TypeError, "truth values"),
        (np.array([True, False]), TypeError, "flatnonzero"),
        (torch.tensor([True]), TypeError, "flatnonzero"),
        (1.0, TypeError, "of type float"),
        (np.float32(1), TypeError, "of type float32"),
        (np.array([1.0]), TypeError, "float64"),
        (np.array([[1]]), TypeError, "shape"),
        (torch.tensor(1.5), TypeError, "expected a position"),
        ((1,), TypeError, "of 1 parts"),
        ((1, 2, 3), TypeError, "of 3 parts"),
        ((1, None), TypeError, "expected a position"),
        ({1}, TypeError, "of type set"),
        (b"red", TypeError, "of type bytes"),
        ("", ValueError, "empty phrase"),
        (" \n", ValueError, "empty phrase"),
        ("dog", ValueError, r"no word or phrase 'dog' in the answer, whose words are \['A', 'red'"),
        ("ed", ValueError, "no word or phrase"),
        ("star a", ValueError, "no word or phrase"),
        ("star and a R", ValueError, "no word or phrase"),
        (("red", 0), ValueError, "occurrence 0"),
        (("star", 3), ValueError, "expected at most 2, as often"),
        (("dog", 1), ValueError, "no word or phrase"),
        (("red", "star"), TypeError, "expected a position"),
        (re.compile("z"), ValueError, "no word or phrase 'z'"),
        (re.compile(""), ValueError, "no word or phrase"),
        (re.compile(b"red"), TypeError, "not of bytes"),
    ],
    ids=repr,
)
def test_what_selects_nothing_is_refused(
    selection: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        select(selection)


def test_the_answer_comes_before_the_prompt() -> None:
    tokens = ["a", " dog", "gy", " bone", "a", " cat"]
    words = [(0,), (1,), (2,), (3,), (4,), (5,)]
    runs = (2, 2, 2)
    assert select_tokens("a", tokens, words, runs) == [4]
    assert select_tokens("dog", tokens, words, runs) == [1]
    assert select_tokens(("a", None), tokens, words, runs) == [4]
    # No phrase goes over from one text into the next.
    for phrase in ("doggy", "dog gy", "bone a", re.compile("bone ?a")):
        with pytest.raises(ValueError, match="no word or phrase"):
            select_tokens(phrase, tokens, words, runs)


def test_accents_match_however_they_are_composed() -> None:
    tokens = [" caf", "e\u0301", " 红", "色", " stra\u00dfe"]
    words = [(0, 1), (2,), (3,), (4,)]
    assert select_tokens("café", tokens, words) == [0, 1]
    assert select_tokens("红色", tokens, words) == [2, 3]
    assert select_tokens("STRASSE", tokens, words) == [4]


def test_long_answers_are_not_listed_whole() -> None:
    tokens = [f" word{index}" for index in range(1000)]
    with pytest.raises(ValueError, match="and more") as caught:
        select_tokens("dog", tokens, [(index,) for index in range(1000)])
    assert len(str(caught.value)) < 600


positions = st.integers(-20, 20)
anything = st.one_of(
    positions,
    st.tuples(positions, positions),
    st.builds(slice, st.none() | positions, st.none() | positions, st.none() | positions),
    st.builds(range, positions, positions),
    st.lists(positions | st.text("Aredstn '", max_size=8)),
    st.text(max_size=6),
    st.tuples(st.text("Aredstn '", max_size=8), positions),
    st.floats(),
    st.booleans(),
    st.none(),
)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_any_selection_is_tokens_or_a_reasoned_error(selection: Any) -> None:
    try:
        found = select(selection)
    except (TypeError, ValueError) as error:
        assert re.search("expected|there is no|empty", str(error))  # noqa: PT017
    else:
        assert found
        assert len(set(found)) == len(found)
        assert all(0 <= token < len(TOKENS) for token in found)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["red", "Red", "star", ",", "é"]), min_size=1, max_size=8), st.data()
)
def test_every_phrase_of_the_answer_is_found(texts: list[str], data: st.DataObject) -> None:
    tokens = [text if text == "," else f" {text}" for text in texts]
    words = [(index,) for index in range(len(tokens))]
    start = data.draw(st.integers(0, len(tokens) - 1))
    end = data.draw(st.integers(start + 1, len(tokens)))
    phrase = "".join(tokens[start:end])
    alike = [
        first
        for first in range(len(tokens))
        if [text.strip() for text in tokens[first : first + end - start]]
        == [text.strip() for text in tokens[start:end]]
    ]
    occurrence = alike.index(start) + 1
    assert select_tokens((phrase, occurrence), tokens, words) == list(range(start, end))
