"""Rows that are chats or have several images, and chats that rows are asked in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captum_mllm.datasets import Sample, SampleError, open_samples
from captum_mllm.datasets.chats import Chat, read_messages, read_template, text_of
from tests.datasets.written import write_image, write_json, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.png", (12, 8))
    write_image(tmp_path / "b.png", (6, 4))
    return tmp_path


def user(*parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def image(name: str | None = None) -> dict[str, Any]:
    return {"type": "image"} if name is None else {"type": "image", "path": name}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def read(folder: Path, row: dict[str, Any]) -> Sample:
    (sample,) = open_samples(write_lines(folder / "data.jsonl", [row]))
    return sample


def test_a_row_of_several_images(folder: Path) -> None:
    row: dict[str, Any] = {"images": ["a.png", "b.png"], "prompt": "What has changed?"}
    sample = read(folder, row)
    assert sample.chat is not None and sample.chat.explained is None
    assert sample.chat.messages == [user(image(), image(), "What has changed?")]
    assert sample.chat.files == (folder / "a.png", folder / "b.png")
    mask = {"words": "star", "mask": [3, 1, 1, 1]}
    sample = read(folder, {**row, "explained": 1, "answer": "a star", "regions": [mask]})
    assert sample.chat is not None and sample.chat.files == (folder / "a.png", None)
    # Regions are of the image that is explained.
    assert sample.size == (4, 6) and sample.masks[0, 1, 3] and sample.masks.sum() == 1
    assert read(folder, {"images": ["a.png"], "prompt": "What?"}).chat is None


def test_a_row_that_is_a_chat(folder: Path) -> None:
    turns = [user(image("b.png"), "What is it?"), assistant("A star."), user(image(), "And this?")]
    sample = read(folder, {"image": "a.png", "messages": turns, "explained": 1})
    assert sample.chat is not None and sample.chat.files == (folder / "b.png", None)
    assert sample.chat.messages[0] == user(image(), "What is it?")
    assert (sample.question, sample.answer, sample.size) == ("And this?", None, (8, 12))
    turns = [user(image("b.png"), "What is it?"), assistant("A red star.")]
    sample = read(folder, {"messages": turns, "regions": [{"words": "star", "mask": [0, 0, 1, 1]}]})
    assert (sample.answer, sample.size) == ("A red star.", (4, 6))
    assert sample.chat is not None
    assert (sample.chat.messages, sample.chat.files) == ([user(image(), "What is it?")], (None,))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("What?")]}, "there is no image"),
        ({"messages": [user(image(), "What?")]}, "1 image parts without a path, and the row 0"),
        ({"image": "a.png", "messages": [user("What?")]}, "0 image parts without a path, and the"),
        ({"messages": [user(image("absent.png"), "What?")]}, "there is no image 'absent.png'"),
        ({"messages": "What?"}, "'messages' is 'What?', which is a str"),
        ({"messages": [assistant("A star.")]}, "has no message of the user"),
        ({"messages": ["What?"]}, "'messages' is not a list of objects"),
        ({"messages": [user(image("a.png"), "x")], "prompt": "What?"}, "leave out one of them"),
        ({"images": ["a.png", "c.png"]}, "there is no image 'c.png'"),
        ({"images": []}, "'images' is []"),
        ({"images": ["a.png", "b.png"], "explained": 2}, "the index of one of 2 image(s)"),
        ({"image": "a.png", "explained": "a.png"}, "'explained' is 'a.png', which is a str"),
    ],
)
def test_damaged_chats_are_named(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError) as caught:
        read(folder, row)
    assert "data.jsonl, line 1: " in str(caught.value) and message in str(caught.value)


def test_names_in_a_file_are_relative_to_it(folder: Path) -> None:
    turns = [user(image("a.png"), image(), {"type": "image", "image": "b.png"}), assistant("So.")]
    path = write_json(folder / "chat.json", {"messages": turns})
    chat = Chat.of(read_messages(path))
    assert chat.files == (folder / "a.png", None, folder / "b.png")
    assert chat.messages == [user(image(), image(), image()), assistant("So.")]
    assert json.loads(path.read_text()) == {"messages": turns}


def test_a_question_goes_where_the_chat_has_its_place(folder: Path) -> None:
    turns = [{"role": "system", "content": "Q: {question}"}, user(image(), "Say, {question}")]
    chat = Chat.of(read_template(write_json(folder / "chat.json", turns))).asking("what is it?")
    assert [text_of(message) for message in chat.messages] == [
        "Q: what is it?",
        "Say, what is it?",
    ]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([user("{question}")], "has 0 image parts without a path, expected one"),
        ([user(image(), image(), "{question}")], "has 2 image parts"),
        ([user(image(), "What is it?")], "has no {question} in its texts"),
        (3, "expected a JSON list of messages"),
    ],
)
def test_chats_without_a_place_for_a_row_are_refused(
    folder: Path, turns: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        read_template(write_json(folder / "chat.json", turns))
