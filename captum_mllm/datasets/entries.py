r"""``Entry``, a row whose values are checked as they are taken, and ``find_phrase``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_mllm.datasets.masks import Mask, parse_mask
from captum_mllm.datasets.samples import Region, Sample, SampleError


@dataclass(frozen=True)
class Entry:
    r"""
    A row, from which a reader makes a sample.

    Args:
        number (int): Its place in the data set, from 0.
        source (str): Its file and line.
        value (Any): What the file says.
        data (Path): The folder of the file.
        images (Path): Where the paths of images begin.
        prompt (str, optional): What the model is asked where the row has no question.
            Default: None, the format's own question.
    """

    number: int
    source: str
    value: Any
    data: Path
    images: Path
    prompt: str | None = None

    def error(self, message: str) -> SampleError:
        r"""An error of this row, with its line."""
        return SampleError(message, self.source)

    def has(self, key: str) -> bool:
        r"""Whether the row has a value of that name."""
        return self._object().get(key) is not None

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        r"""
        A value of the row.

        Raises:
            SampleError: If it is missing, or of another type.
        """
        value = self._object().get(key)
        if value is None:
            raise self.error(f"there is no {key!r}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"{key!r} is {_short(value)}, which is a {type(value).__name__}")
        return value

    def text(self, *keys: str) -> str:
        r"""
        A text of the row, by the first of some names that it has.

        Raises:
            SampleError: If it has none of them, or the text is empty.
        """
        key = next((key for key in keys if self.has(key)), keys[0])
        found = self.get(key, str).strip()
        if not found:
            raise self.error(f"{key!r} is empty")
        return str(found)

    def texts(self, key: str) -> tuple[str, ...]:
        r"""
        A text, or a list of texts, as a tuple of at least one.

        Raises:
            SampleError: If it is missing, or a text is empty.
        """
        given = self.get(key, (str, list))
        found = [given] if isinstance(given, str) else given
        if not found or not all(isinstance(each, str) and each.strip() for each in found):
            raise self.error(f"{key!r} is {_short(given)}, expected a text that is not empty")
        return tuple(each.strip() for each in found)

    def id(self, *keys: str) -> str:
        r"""The row's own name, else its number."""
        for key in keys:
            if self.has(key):
                return str(self.get(key, (str, int)))
        return str(self.number)

    def image(self, name: str, *folders: Path) -> Path:
        r"""
        The file of an image.

        Args:
            name (str): Its path, absolute or relative to one of the folders.
            *folders (Path): Where to look. Default: the folder of images.

        Raises:
            SampleError: If there is no such file.
        """
        places = list(dict.fromkeys(folders or (self.images,)))
        for folder in places:
            if (folder / name).is_file():
                return folder / name
        looked = " or ".join(map(str, places))
        raise self.error(f"there is no image {name!r} in {looked}")

    def mask(self, given: Any, name: str, folder: Path | None = None) -> Mask:
        r"""
        A mask from what JSON says, see :func:`~captum_mllm.datasets.masks.parse_mask`.

        Raises:
            SampleError: If it is not a mask, or its file is missing.
        """
        try:
            mask = parse_mask(given, folder or self.data)
        except (ValueError, OverflowError) as error:
            raise self.error(f"{name}: {error}") from error
        if isinstance(given, str) and not ((folder or self.data) / given).is_file():
            raise self.error(f"{name}: there is no mask {(folder or self.data) / given}")
        return mask

    def region(self, answer: str | None, mask: Mask, text: str, span: Any = None) -> Region:
        r"""
        A labelled phrase.

        Args:
            answer (str, optional): The reference answer, in which the phrase has to be.
            mask (Mask): What it speaks of.
            text (str): The phrase.
            span (list[int], optional): Where it begins and ends in the answer, in characters;
                then the text is read from there. Default: None

        Raises:
            SampleError: If the phrase is empty or not in the answer.
        """
        if span is not None:
            is_span = isinstance(span, list) and len(span) == 2
            if not is_span or not all(type(end) is int for end in span):
                raise self.error(f"{_short(span)} is not a range [start, end] of characters")
            if answer is None:
                raise self.error(f"the range {span} needs an answer")
            start, end = span
            if not 0 <= start < end <= len(answer) or not answer[start:end].strip():
                raise self.error(
                    f"the range {span} has no word of the answer of {len(answer)} characters"
                )
            return Region(answer[start:end], mask, start)
        if not text.strip():
            raise self.error("a labelled phrase is empty")
        if answer is not None and find_phrase(answer, text) is None:
            raise self.error(f"the phrase {text!r} is not in the answer {_short(answer)}")
        return Region(text.strip(), mask)

    def sample(
        self, id: str, image: Path | Callable[[], Any], question: str, **parts: Any
    ) -> Sample:
        r"""A sample of this row; ``parts`` as of :class:`Sample`."""
        return Sample(id, self.number, self.source, image, question, **parts)

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.error(f"expected a JSON object, got {_short(self.value)}")
        return self.value


def find_phrase(answer: str, phrase: str) -> int | None:
    r"""
    Where a phrase first occurs in an answer as whole words, ignoring case if need be.

    Args:
        answer (str): The answer.
        phrase (str): One or more words.

    Returns:
        int or None: The place of its first character; None where it does not occur.

    Examples::

        >>> find_phrase("A cart and a Car.", "car")
        13
    """
    phrase = phrase.strip()
    for text, wanted in ((answer, phrase), (answer.casefold(), phrase.casefold())):
        if len(text) != len(answer):
            # Some letters get longer; their places would not be those of the answer.
            continue
        start = text.find(wanted)
        while start >= 0 and wanted:
            end = start + len(wanted)
            before, after = text[start - 1 : start], text[end : end + 1]
            is_apart = not (before.isalnum() and wanted[0].isalnum())
            if is_apart and not (after.isalnum() and wanted[-1].isalnum()):
                return start
            start = text.find(wanted, start + 1)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
