from __future__ import annotations

from typing import Any

import pytest

from captum_mllm.models.prompt_parts import PromptPart, prompt_parts

IMAGE = {"type": "image"}


def said(role: str, *parts: str | dict[str, str]) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts],
    }


CHAT = [
    {"role": "system", "content": "Be brief."},
    said("user", IMAGE, "What is it?", IMAGE, "And this?"),
    said("assistant", "A dog."),
    said("user", "Sure?"),
]
TOKENS = [
    "Be",
    " brief",
    ".",
    "What",
    " is",
    " it",
    "?",
    "And",
    " this",
    "?",
    "A",
    " dog",
    ".",
    "Sure",
    "?",
]


def test_runs_get_the_turns_that_they_come_from() -> None:
    assert prompt_parts(CHAT, TOKENS, (3, 4, 3, 3, 2)) == [
        PromptPart("system", 3, turn=0),
        PromptPart("user", image=0, turn=1),
        PromptPart("user", 4, turn=1),
        PromptPart("user", image=1, turn=1),
        PromptPart("user", 3, turn=1),
        PromptPart("assistant", 3, turn=2),
        PromptPart("user", 2, turn=3),
    ]


def test_a_text_in_two_runs_and_two_texts_in_one() -> None:
    chat = [said("user", "one <s> two", "three", IMAGE)]
    parts = prompt_parts(chat, ["one", " two", "three"], (1, 2))
    assert [(part.role, part.n_tokens, part.image) for part in parts] == [
        ("user", 1, None),
        ("user", 2, None),
        ("user", 0, 0),
    ]


def test_small_changes_of_the_template_do_no_harm() -> None:
    # The first token cannot be explained, a mark of the template hangs at a token, capitals.
    tokens = [" BRIEF", ".\n", *TOKENS[3:]]
    parts = prompt_parts(CHAT, tokens, (2, 4, 3, 3, 2))
    assert [part.role for part in parts if part.image is None] == [
        "system",
        "user",
        "user",
        "assistant",
        "user",
    ]


def test_words_that_are_no_tokens_do_no_harm() -> None:
    # All of the second user's text but "?" is unknown, most of the others too.
    tokens = ["Be", "What", "?", "dog", ".", "?"]
    parts = prompt_parts(CHAT, tokens, (1, 1, 1, 2, 1))
    assert [(part.role, part.turn) for part in parts if part.image is None] == [
        ("system", 0),
        ("user", 1),
        ("user", 1),
        ("assistant", 2),
        ("user", 3),
    ]


@pytest.mark.parametrize("runs", [(75,), (40, 35)])
def test_a_rewritten_prompt_has_no_roles(runs: tuple[int, ...]) -> None:
    parts = prompt_parts(CHAT, ["template"] * 75, runs)
    assert {part.role for part in parts if part.image is None} == {""}
    assert sum(part.n_tokens for part in parts) == 75
    assert [part.image for part in parts if part.image is not None] == [0, 1]


def test_no_token_is_lost_without_any() -> None:
    assert prompt_parts([said("user", IMAGE, "x")], [], ()) == [PromptPart("user", image=0)]
