r"""``Chat``, a conversation about images; ``read_messages``, one from a JSON file, and
``read_template``, one in which each row of a data set is asked about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Messages = list[dict[str, Any]]

#: What stands for a row's question in a chat that all rows of a data set are asked in.
QUESTION = "{question}"


class Chat(NamedTuple):
    r"""
    Messages as chat templates take them, and the files of the images that they show.

    Args:
        messages (list[dict]): The messages. Parts of type ``"image"`` hold no name.
        files (tuple): The file of each of these parts, in their order; None where the part named
            none.
    """

    messages: Messages
    files: tuple[Path | None, ...]

    @classmethod
    def of(cls, messages: Sequence[dict[str, Any]], find: Callable[[str], Path] = Path) -> Chat:
        r"""
        Take the names out of parts such as ``{"type": "image", "path": "street.jpg"}``.

        Args:
            messages (Sequence[dict]): The messages, which stay as they are.
            find (Callable): From a name to a file. Default: the path of that name

        Examples::

            >>> part = {"type": "image", "path": "street.jpg"}
            >>> Chat.of([{"role": "user", "content": [part]}]).messages
            [{'role': 'user', 'content': [{'type': 'image'}]}]
        """
        files: list[Path | None] = []

        def nameless(part: Any) -> Any:
            if not isinstance(part, dict) or part.get("type") != "image":
                return part
            names = [part.get(key) for key in ("path", "image")]
            name = next((name for name in names if isinstance(name, str)), None)
            files.append(None if name is None else find(name))
            return {key: value for key, value in part.items() if key not in ("path", "image")}

        found = [_mapped(message, nameless) for message in messages]
        return cls(found, tuple(files))

    @classmethod
    def of_question(cls, question: str, images: int = 1) -> Chat:
        r"""A question after images that are not named."""
        parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
        return cls([{"role": "user", "content": parts}], (None,) * images)

    def about(self, explained: int | None) -> Chat:
        r"""The same with the image that is explained left open; None for all of them."""
        files = tuple(None if i == explained else file for i, file in enumerate(self.files))
        return self._replace(files=files)

    @property
    def explained(self) -> int | None:
        """The index of the image that is explained; None for all of them."""
        return self.files.index(None) if None in self.files else None

    def asking(self, question: str) -> Chat:
        r"""The same with a question in the place of ``{question}``."""

        def filled(part: Any) -> Any:
            if isinstance(part, str):
                return part.replace(QUESTION, question)
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                return {**part, "text": part["text"].replace(QUESTION, question)}
            return part

        return self._replace(messages=[_mapped(message, filled) for message in self.messages])


def with_system(messages: Messages, text: str | None) -> Messages:
    r"""Messages after one of the system, if there is a text for it."""
    if text is None:
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": text}]}, *messages]


def text_of(message: dict[str, Any]) -> str:
    r"""
    The texts of a message, one after the other.

    Examples::

        >>> text_of({"content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]})
        'What is it?'
    """
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return " ".join(text.strip() for text in texts if isinstance(text, str))


def read_messages(path: Path) -> Messages:
    r"""
    A chat from a JSON file.

    Args:
        path (Path): A list of messages, or an object with such a list as ``"messages"``.

    Returns:
        list[dict]: The messages. Names of images are paths, those in the file relative to it.

    Raises:
        ValueError: If the file is not such a list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
    if isinstance(found, dict):
        found = found.get("messages")
    if not is_messages(found):
        raise ValueError(
            f"{path}: expected a JSON list of messages {{'role': ..., 'content': ...}}"
        )

    def placed(part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") != "image":
            return part
        names = {key: part[key] for key in ("path", "image") if isinstance(part.get(key), str)}
        return part | {key: str(path.parent / name) for key, name in names.items()}

    return [_mapped(message, placed) for message in found]


def read_template(path: Path) -> Messages:
    r"""
    A chat in which each row of a data set is asked about.

    Args:
        path (Path): As for :func:`read_messages`. One part of type ``"image"`` names no file, where
            the row's image goes; ``{question}`` in a text is where its question goes.

    Returns:
        list[dict]: The messages, with absolute paths.

    Raises:
        ValueError: If the file is not such a chat.
    """
    messages = read_messages(path.absolute())
    places = Chat.of(messages).files.count(None)
    if places != 1:
        raise ValueError(
            f"{path} has {places} image parts without a path, expected one, where the image of "
            "each row goes"
        )
    if not any(QUESTION in text_of(message) for message in messages):
        raise ValueError(f"{path} has no {QUESTION} in its texts, where that of each row goes")
    return messages


def is_messages(value: Any) -> bool:
    r"""Whether a JSON value is a list of messages."""
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _mapped(message: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """A message with a function of each part of its content, or of its text."""
    content = message.get("content")
    parts = list(map(function, content)) if isinstance(content, list) else function(content)
    return {**message, "content": parts} if "content" in message else message
