r"""``json_rows`` and ``csv_lines``: the rows of a file one at a time, with their lines.

Also ``read_json``, a whole file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from captum_mllm.datasets.samples import SampleError

_CHUNK = 1 << 16
_SPACE = " \t\r\n"
# What comes after an element.
_END = re.compile(r"[ \t\r\n]*[,\]]")


# What stands for bytes that are not UTF-8.
_BYTES = re.compile("[\udc80-\udcff]")


class RawRow(NamedTuple):
    r"""
    A row as its file has it.

    Args:
        source (str): The file and the line or the entry.
        value (Any): What JSON says, or a :class:`SampleError` where the row is damaged.
    """

    source: str
    value: Any


def _not_utf8(text: str, source: str) -> SampleError | None:
    """What is wrong with a row that has other bytes than those of UTF-8."""
    return SampleError("the row is not in UTF-8", source) if _BYTES.search(text) else None


def json_lines(path: Path) -> Iterator[RawRow]:
    r"""
    The rows of a file with a JSON value on each line; empty lines are passed over.

    Args:
        path (Path): The file, UTF-8.

    Yields:
        RawRow: A damaged line is a row whose value is a :class:`SampleError`.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            source = f"{path}, line {number}"
            try:
                yield RawRow(source, json.loads(raw.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                yield RawRow(source, SampleError(f"the line is not JSON: {error}", source))


def json_array(path: Path) -> Iterator[RawRow]:
    r"""
    The elements of a file that is one JSON list, without the whole of it in memory.

    Args:
        path (Path): The file, UTF-8.

    Yields:
        RawRow: Where the list is damaged, a last row whose value is a :class:`SampleError`.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        buffer, place, count, is_end = "", 0, 0, False

        def more() -> bool:
            nonlocal buffer, place, is_end
            chunk = file.read(_CHUNK + len(buffer) - place)
            buffer, place, is_end = buffer[place:] + chunk, 0, not chunk
            return not is_end

        def next_sign() -> str:
            nonlocal place
            while True:
                while place < len(buffer) and buffer[place] in _SPACE:
                    place += 1
                if place < len(buffer):
                    return buffer[place]
                if not more():
                    return ""

        if next_sign() != "[":
            source = f"{path}"
            yield RawRow(source, SampleError("expected a JSON list", source))
            return
        place += 1
        while (sign := next_sign()) != "]":
            source = f"{path}, entry {count + 1}"
            if count:
                if sign != ",":
                    yield RawRow(source, SampleError("the JSON list is cut off here", source))
                    return
                place += 1
                next_sign()
            while True:
                try:
                    value, end = decoder.raw_decode(buffer, place)
                    if _END.match(buffer, end):
                        break
                    # A number may go on in the next chunk.
                    end -= place
                    if not more():
                        break
                except (ValueError, RecursionError) as error:
                    if isinstance(error, RecursionError) or not more():
                        message = f"the JSON list is damaged or cut off here: {error}"
                        yield RawRow(source, SampleError(message, source))
                        return
            place, begin = end, place
            count += 1
            yield RawRow(source, _not_utf8(buffer[begin:end], source) or value)


def json_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The rows of a file of JSON lines or of one JSON list.

    Data sets say ``.json`` for both, so that the first sign decides; ``.jsonl`` are always lines.
    """
    if path.suffix.lower() != ".jsonl":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if file.read(1 << 10).lstrip()[:1] == "[":
                return json_array(path)
    return json_lines(path)


def csv_lines(path: Path) -> Iterator[RawRow]:
    r"""
    The rows of a CSV file as dictionaries, by the names in its first line.

    Args:
        path (Path): The file, UTF-8.

    Yields:
        RawRow: Empty cells are left out. A damaged row has a :class:`SampleError` as its value.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        while True:
            source = f"{path}, line {reader.line_num + 1}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(source, SampleError(f"the line is not CSV: {error}", source))
                continue
            source = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                message = f"the line has not as many cells as the first, {reader.fieldnames}"
                yield RawRow(source, SampleError(message, source))
                continue
            cells = {name: cell for name, cell in row.items() if cell.strip()}
            yield RawRow(source, _not_utf8("".join(cells.values()), source) or cells)


def read_json(path: Path) -> Any:
    r"""
    A whole JSON file.

    Raises:
        ValueError: If it is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
