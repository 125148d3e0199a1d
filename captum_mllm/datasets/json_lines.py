r"""Our own rows: JSON lines or CSV with questions about images; and folders of images alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from captum_mllm.datasets.chats import Chat, Messages, is_messages, text_of
from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.rows import RawRow, csv_lines, json_rows
from captum_mllm.datasets.samples import Label, Region, Sample

_IMAGES = ("image", "file_name", "path")
_QUESTIONS = ("prompt", "question", "text")
#: What a model is asked where a row has no question.
DEFAULT_QUESTION = "Describe the image."

IMAGE_ENDINGS = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
)
#: Files of questions that are looked for in a folder of images, in this order.
QUESTION_FILES = ("questions.jsonl", "questions.csv", "questions.json", "metadata.jsonl")


def own_rows(path: Path) -> Iterator[RawRow]:
    r"""The rows of a file of JSON lines, a JSON list, or CSV, by its ending."""
    return csv_lines(path) if path.suffix.lower() == ".csv" else json_rows(path)


def own_sample(entry: Entry) -> Sample:
    r"""
    A sample of a row ``{"image", "prompt"?, "answer"?, "id"?, "label"?, "references"?,
    "regions"?}``.

    ``"question"`` or ``"text"`` can be said for ``"prompt"``, ``"file_name"`` for ``"image"``.
    ``"images"`` instead of ``"image"`` are several; ``"explained"`` is the index of the one that
    regions and maps are of. ``"messages"`` instead of the prompt is a chat, which may name its
    images itself; if it ends with an answer of the assistant, that is the reference.
    ``"regions"`` is a list of ``{"words": ..., "mask": ...}``: the words are a text that is in the
    answer, or the range ``[start, end]`` of their characters; the mask is as for
    :func:`~captum_mllm.datasets.masks.parse_mask`.

    Raises:
        SampleError: If something is missing or wrong.
    """
    messages = _messages(entry)
    answer = entry.text("answer") if entry.has("answer") else None
    if answer is None and messages and messages[-1].get("role") == "assistant":
        answer = text_of(messages.pop()) or None
    question = _question(entry, messages)
    chat = _chat(entry, messages, question)
    explained = _explained(entry, len(chat.files))
    image = chat.files[explained or 0]
    assert image is not None
    references = entry.texts("references") if entry.has("references") else ()
    return entry.sample(
        entry.id("id", "question_id"),
        image,
        question,
        answer=answer,
        references=references or (() if answer is None else (answer,)),
        regions=_regions(entry, answer),
        label=yes_or_no(entry, "label") if entry.has("label") else None,
        chat=chat.about(explained) if messages or len(chat.files) > 1 else None,
    )


def _messages(entry: Entry) -> Messages:
    """The chat of a row; none where it has a question."""
    if not entry.has("messages"):
        return []
    messages = entry.get("messages", list)
    if not messages or not is_messages(messages):
        raise entry.error("'messages' is not a list of objects {'role': ..., 'content': ...}")
    if not any(each.get("role") == "user" for each in messages):
        raise entry.error("'messages' has no message of the user")
    if any(map(entry.has, _QUESTIONS)):
        raise entry.error("the row has 'messages' and a question; leave out one of them")
    return list(messages)


def _question(entry: Entry, messages: Messages) -> str:
    """The question, in a chat what the user says last."""
    if messages:
        said = (text_of(each) for each in reversed(messages) if each.get("role") == "user")
        return next(said, "")
    if any(map(entry.has, _QUESTIONS)):
        return entry.text(*_QUESTIONS)
    return entry.prompt or DEFAULT_QUESTION


def _chat(entry: Entry, messages: Messages, question: str) -> Chat:
    """What the model is asked, with a file for each image."""
    names: tuple[str, ...] = ()
    if entry.has("images"):
        names = entry.texts("images")
    elif not messages or any(map(entry.has, _IMAGES)):
        names = (entry.text(*_IMAGES),)
    given = [entry.image(name) for name in names]
    chat = Chat.of(messages, entry.image) if messages else Chat.of_question(question, len(given))
    open_places = chat.files.count(None)
    if open_places != len(given):
        raise entry.error(
            f"'messages' has {open_places} image parts without a path, and the row {len(given)} "
            "images for them"
        )
    if not chat.files:
        raise entry.error("there is no image")
    left = iter(given)
    return chat._replace(files=tuple(file or next(left) for file in chat.files))


def _explained(entry: Entry, count: int) -> int | None:
    """Which image regions and maps are of; None where the row does not say it of several."""
    if not entry.has("explained"):
        return 0 if count == 1 else None
    index = int(entry.get("explained", int))
    if not 0 <= index < count:
        raise entry.error(f"'explained' is {index}, expected the index of one of {count} image(s)")
    return index


def _regions(entry: Entry, answer: str | None) -> tuple[Region, ...]:
    found = []
    for index, region in enumerate(entry.get("regions", list) if entry.has("regions") else ()):
        name = f"region {index + 1}"
        if not isinstance(region, dict) or "words" not in region or "mask" not in region:
            raise entry.error(f'{name} is not an object with "words" and "mask"')
        words = region["words"]
        mask = entry.mask(region["mask"], name)
        if isinstance(words, str):
            found.append(entry.region(answer, mask, words))
        else:
            found.append(entry.region(answer, mask, "", _shifted(words, entry)))
    return tuple(found)


def _shifted(span: object, entry: Entry) -> object:
    """A range of the answer's characters, without the white space that the answer begins with."""
    if not isinstance(span, list) or not entry.has("answer"):
        return span
    given = entry.get("answer", str)
    skipped = len(given) - len(given.lstrip())
    return [end - skipped if type(end) is int else end for end in span]


def yes_or_no(entry: Entry, key: str) -> Label:
    r"""
    The right answer of a yes/no question.

    Raises:
        SampleError: If it is neither.
    """
    label = entry.text(key).lower().rstrip(".")
    if label == "yes":
        return "yes"
    if label == "no":
        return "no"
    raise entry.error(f"{key!r} is {label!r}, expected yes or no")


def lists_images(path: Path) -> bool:
    r"""Whether the rows of a path are the images of a folder, as no file asks about them."""
    return path.is_dir() and not any((path / name).is_file() for name in QUESTION_FILES)


def folder_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The rows of the file of questions in a folder, or a row for each of its images.

    Args:
        path (Path): The folder.

    Yields:
        RawRow: As of :func:`own_rows`. Images without questions come in the order of their names,
        those of subfolders too; hidden ones are left out.
    """
    for name in QUESTION_FILES:
        if (path / name).is_file():
            yield from own_rows(path / name)
            return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file() and not is_hidden:
            yield RawRow(str(file), {"image": name, "id": name})
