r"""Our own rows: JSON lines or CSV with questions about images; and folders of images alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.rows import RawRow, csv_lines, json_rows
from captum_mllm.datasets.samples import Label, Region, Sample

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
    ``"regions"`` is a list of ``{"words": ..., "mask": ...}``: the words are a text that is in the
    answer, or the range ``[start, end]`` of their characters; the mask is as for
    :func:`~captum_mllm.datasets.masks.parse_mask`.

    Raises:
        SampleError: If something is missing or wrong.
    """
    image = entry.image(entry.text("image", "file_name", "path"), entry.images)
    questions = ("prompt", "question", "text")
    has_question = any(map(entry.has, questions))
    question = entry.text(*questions) if has_question else entry.prompt or DEFAULT_QUESTION
    answer = entry.text("answer") if entry.has("answer") else None
    references = entry.texts("references") if entry.has("references") else ()
    return entry.sample(
        entry.id("id", "question_id"),
        image,
        question,
        answer=answer,
        references=references or (() if answer is None else (answer,)),
        regions=_regions(entry, answer),
        label=yes_or_no(entry, "label") if entry.has("label") else None,
    )


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
            found.append(entry.region(answer, mask, "", words))
    return tuple(found)


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
