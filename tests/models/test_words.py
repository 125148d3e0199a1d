from __future__ import annotations

import pytest

from captum_mllm.models.words import group_words, token_texts
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
        ([" it", "'", "s"], [(0,), (1,), (2,)]),
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
