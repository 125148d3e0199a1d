from __future__ import annotations

import time

import pytest

from captum_mllm.models.words import group_runs, group_words, run_texts, token_texts
from tests.models.tiny_models import shared


@pytest.mark.parametrize(
    "text",
    [
        "a cat and a dog",
        "Ünïcode: 猫と犬 🐈‍⬛!",
        "tabs\tand\nlines  twice",
        "<script>alert(1)</script>",
        "",
    ],
)
def test_token_texts_put_together_are_the_text(text: str) -> None:
    tokenizer = shared("llava")[1].tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_character_of_several_tokens_belongs_to_the_last_of_them() -> None:
    tokenizer = shared("llava")[1].tokenizer
    ids = tokenizer("猫", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert token_texts(tokenizer, ids) == [*[""] * (len(ids) - 1), "猫"]


def test_bytes_that_make_no_character_are_shown_all_the_same() -> None:
    tokenizer = shared("llava")[1].tokenizer
    ids = tokenizer("a猫", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids[:-1])
    assert texts[0] == "a"
    assert "\N{REPLACEMENT CHARACTER}" in texts[-1]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a", " cat", " sat"], [(0,), (1,), (2,)]),
        (["un", "believ", "able", "!"], [(0, 1, 2), (3,)]),
        ([" it", "'", "s"], [(0, 1, 2)]),
        ([" it", "\u2019", "s"], [(0, 1, 2)]),
        ([" don", "'t", "!"], [(0, 1), (2,)]),
        ([" '", "yes", "'", " he"], [(0,), (1,), (2,), (3,)]),
        (["dogs", "'", " tails"], [(0,), (1,), (2,)]),
        ([" 3", ".", "5", "."], [(0, 1, 2), (3,)]),
        (["1", ",", "000", ",", " 2"], [(0, 1, 2), (3,), (4,)]),
        (["5", "'", "4"], [(0,), (1,), (2,)]),
        (["x", ".", "y"], [(0,), (1,), (2,)]),
        ([" T", "-", "shirt"], [(0, 1, 2)]),
        (["F", "-", "16", " -", "2"], [(0, 1, 2), (3,), (4,)]),
        (["well", "-", " known"], [(0,), (1,), (2,)]),
        (["snake", "_", "case"], [(0, 1, 2)]),
        (["cafe", "\u0301", "s"], [(0, 1, 2)]),
        (["हि", "न", "्", "द", "ी", " में"], [(0, 1, 2, 3, 4), (5,)]),
        (
            ["\U0001f468", "\u200d", "\U0001f469", "\u200d", "\U0001f467", "!"],
            [(0, 1, 2, 3, 4), (5,)],
        ),
        (["\U0001f44d", "\U0001f3fd", "\U0001f44d"], [(0, 1), (2,)]),
        (["\u2764", "\ufe0f", "\u2764"], [(0, 1), (2,)]),
        (["\U0001f1e9", "\U0001f1ea", "\U0001f1eb", "\U0001f1f7"], [(0, 1), (2, 3)]),
        (["猫", "犬", "cat"], [(0,), (1,), (2,)]),
        (["한", "국어"], [(0, 1)]),
        (["", "", "猫", "と"], [(0, 1, 2), (3,)]),
        (["no", "\n", "yes"], [(0,), (1,), (2,)]),
        ([" 4", "2"], [(0, 1)]),
        (["a", " ", "red", " "], [(0,), (1, 2), (3,)]),
        (["end", ""], [(0,), (1,)]),
        ([], []),
    ],
)
def test_words(texts: list[str], words: list[tuple[int, ...]]) -> None:
    assert group_words(texts) == words


def test_words_do_not_depend_on_how_the_text_is_cut_into_tokens() -> None:
    text = "A T-shirt for 3.5 dogs doesn't fit: cafe\u0301 \U0001f468\u200d\U0001f469 हिन्दी."
    expected = ["A", " T-shirt", " for", " 3.5", " dogs", " doesn't", " fit", ":", " cafe\u0301"]
    expected += [" \U0001f468\u200d\U0001f469", " हिन्दी", "."]
    for parts in (list(text), [part for word in expected for part in (word[:2], word[2:]) if part]):
        words = group_words(parts)
        assert ["".join(parts[index] for index in word) for word in words] == expected


@pytest.mark.parametrize(
    ("texts", "lengths", "words"),
    [
        ([" it", "and"], (1, 1), [(0,), (1,)]),
        ([" this", "red", "dish", "."], (1, 3), [(0,), (1, 2), (3,)]),
        (["a", " ", "cat"], (2, 1), [(0,), (1,), (2,)]),
        (["3", ".", "5"], (1, 2), [(0,), (1,), (2,)]),
        (["\U0001f468", "\u200d", "\U0001f469"], (2, 1), [(0, 1), (2,)]),
        (["a"], (0, 1, 0), [(0,)]),
    ],
)
def test_no_word_goes_over_from_one_run_into_the_next(
    texts: list[str], lengths: tuple[int, ...], words: list[tuple[int, ...]]
) -> None:
    assert group_runs(texts, lengths) == words


def test_no_character_goes_over_from_one_run_into_the_next() -> None:
    tokenizer = shared("llava")[1].tokenizer
    ids = tokenizer("猫", add_special_tokens=False)["input_ids"]
    assert run_texts(tokenizer, ids, (len(ids),))[-1] == "猫"
    first = token_texts(tokenizer, ids[:-1])
    second = token_texts(tokenizer, ids[-1:])
    assert run_texts(tokenizer, ids, (len(ids) - 1, 1)) == first + second
    assert "猫" not in first + second


def test_a_long_text_is_grouped_in_no_time() -> None:
    texts = [" word", "'", "s", "-", "zzz", ".", "\u200d", "\u0301"] * 10_000
    start = time.monotonic()
    words = group_words(texts)
    assert sum(map(len, words)) == len(texts)
    assert time.monotonic() - start < 10
