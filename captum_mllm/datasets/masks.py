r"""``decode_rle``, and masks that are read when they are needed: ``RleMask``, ``PngMask``,
``PolygonMask``, ``BoxMask``, and ``parse_mask``, which tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

BoolMask = npt.NDArray[np.bool_]
#: Height and width, in pixels.
Size = tuple[int, int]


class Mask(Protocol):
    r"""A mask that is decoded when it is asked for."""

    def check(self, size: Size) -> None:
        r"""
        Find out cheaply whether the mask fits an image.

        Args:
            size (tuple[int, int]): Height and width of the image.

        Raises:
            ValueError: If the mask has another size, or lies outside of the image.
            OSError: If its file cannot be read.
        """

    def read(self, size: Size) -> BoolMask:
        r"""
        Decode the mask.

        Args:
            size (tuple[int, int]): Height and width of the image.

        Returns:
            numpy.ndarray: (H, W), bool.
        """


def decode_rle(counts: str | bytes | Sequence[int], size: Size) -> BoolMask:
    r"""
    Decode COCO's run-length encoding.

    Runs of 0 and 1 alternate, beginning with 0, down the columns of the mask. Compressed counts
    hold 5 bits of a number in each character, the lowest first; from the fourth on, a count is
    given as its difference from the one two before.

    Args:
        counts (str, bytes or Sequence[int]): Compressed or plain counts.
        size (tuple[int, int]): Height and width.

    Returns:
        numpy.ndarray: (H, W), bool.

    Raises:
        ValueError: If the counts are damaged or do not add up to the size.

    Examples::

        >>> decode_rle([1, 2, 1], (2, 2)).tolist()
        [[False, True], [True, False]]
    """
    runs = _uncompressed(counts) if isinstance(counts, (str, bytes)) else _plain(counts)
    if len(runs) and (runs.min() < 0 or runs.max() > size[0] * size[1]):
        raise ValueError("the run-length encoding has a run that is negative or too long")
    if runs.sum() != size[0] * size[1]:
        raise ValueError(
            f"the run-length encoding has {runs.sum()} pixels, expected {size[0]} x {size[1]}"
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(size[1], size[0]).T


def _plain(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    if not set(map(type, counts)) <= {int}:
        raise ValueError("the run-length encoding has counts that are not integers")
    return np.array(counts, dtype=np.int64)


def _uncompressed(text: str | bytes) -> npt.NDArray[np.int64]:
    raw = text.encode("latin-1", "replace") if isinstance(text, str) else text
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    is_last = (digits & 0x20) == 0
    if digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        raise ValueError("the compressed run-length encoding is damaged")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("the compressed run-length encoding is damaged")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 0x1F) << shifts, starts)
    is_negative = (digits[ends] & 0x10) != 0
    values = np.where(is_negative, values - (1 << (5 * lengths)), values)
    # The first three counts are given as they are; two chains of differences begin with two of
    # them.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


@dataclass(frozen=True)
class RleMask:
    r"""
    Regions in COCO's run-length encoding, taken together.

    Args:
        parts (tuple): For each region its counts, see :func:`decode_rle`, and its size (H, W).
    """

    parts: tuple[tuple[Any, Size], ...]

    def check(self, size: Size) -> None:
        for _, own in self.parts:
            _check_size("mask", own, size)

    def read(self, size: Size) -> BoolMask:
        self.check(size)
        mask = np.zeros(size, dtype=bool)
        for counts, own in self.parts:
            mask |= decode_rle(counts, own)
        return mask


@dataclass(frozen=True)
class PngMask:
    r"""
    A mask in an image file, a PNG as a rule.

    Args:
        path (Path): The file.
        value (int, optional): The grey level that belongs to the mask. Default: None, all levels
            above 0.
    """

    path: Path
    value: int | None = None

    def check(self, size: Size) -> None:
        with Image.open(self.path) as image:
            _check_size(f"mask {self.path.name}", (image.height, image.width), size)

    def read(self, size: Size) -> BoolMask:
        levels = read_levels(self.path, size)
        return levels > 0 if self.value is None else levels == self.value


@dataclass(frozen=True)
class PolygonMask:
    r"""
    The pixels whose centre lies in one of some polygons; what a polygon surrounds twice is out.

    Args:
        polygons (tuple[tuple[float, ...], ...]): x and y of each corner in turn, in pixels.
    """

    polygons: tuple[tuple[float, ...], ...]

    def check(self, size: Size) -> None:
        for polygon in self.polygons:
            corners = np.array(polygon).reshape(-1, 2)
            _check_box(corners.min(0), corners.max(0), size, "polygon")

    def read(self, size: Size) -> BoolMask:
        mask = np.zeros(size, dtype=bool)
        for polygon in self.polygons:
            mask |= _inside(np.array(polygon, dtype=np.float64).reshape(-1, 2), size)
        return mask


@dataclass(frozen=True)
class BoxMask:
    r"""
    The pixels of boxes, taken together.

    Args:
        boxes (tuple): Left, upper, right and lower edge of each box, in pixels. A pixel belongs to
            a box if its centre does, and the one in the middle of the box always does.
    """

    boxes: tuple[tuple[float, float, float, float], ...]

    def check(self, size: Size) -> None:
        for left, top, right, bottom in self.boxes:
            if right <= left or bottom <= top:
                raise ValueError(f"the box from {[left, top]} to {[right, bottom]} has no area")
            _check_box((left, top), (right, bottom), size, "box")

    def read(self, size: Size) -> BoolMask:
        mask = np.zeros(size, dtype=bool)
        for left, top, right, bottom in self.boxes:
            rows, columns = _pixels(top, bottom, size[0]), _pixels(left, right, size[1])
            mask[rows, columns] = True
        return mask


@dataclass(frozen=True)
class PanopticMask:
    r"""
    Segments of a panoptic image, whose ids are red + 256 green + 65536 blue.

    Args:
        path (Path): The file.
        ids (tuple[int, ...]): The segments, taken together.
    """

    path: Path
    ids: tuple[int, ...]

    def check(self, size: Size) -> None:
        PngMask(self.path).check(size)

    def read(self, size: Size) -> BoolMask:
        with Image.open(self.path) as image:
            colors = np.asarray(image.convert("RGB"), dtype=np.int32)
        _check_size(f"mask {self.path.name}", colors.shape[:2], size)
        return np.isin(colors @ np.array([1, 256, 65536], dtype=np.int32), self.ids)


def read_levels(path: Path, size: Size) -> npt.NDArray[np.int32]:
    r"""
    The grey levels of an image file, or the indices of its palette.

    Args:
        path (Path): The file.
        size (tuple[int, int]): Height and width that it has to have.

    Returns:
        numpy.ndarray: (H, W), int32.

    Raises:
        ValueError: If it has another size.
        OSError: If it cannot be read.
    """
    with Image.open(path) as image:
        is_grey = image.mode in ("1", "L", "P", "I", "I;16")
        levels = np.asarray(image if is_grey else image.convert("L")).astype(np.int32)
    _check_size(f"mask {path.name}", levels.shape, size)
    return levels


def parse_mask(given: Any, folder: Path) -> Mask:
    r"""
    The mask that a JSON value describes.

    Args:
        given (str, dict or list): A path of an image file; a run-length encoding ``{"counts":
            ..., "size": [H, W]}``; a box ``[x, y, width, height]``; a polygon ``[x, y, x, y, x, y,
            ...]``; or a list of encodings, boxes or polygons, which are taken together.
        folder (Path): Where relative paths begin.

    Returns:
        Mask: Not yet decoded.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(given, str) and given:
        return PngMask(folder / given)
    parts = given if isinstance(given, list) else [given]
    if parts and all(map(_is_number, parts)):
        parts = [parts]
    if parts:
        if all(isinstance(each, dict) for each in parts):
            return RleMask(tuple(_rle(each) for each in parts))
        lists = [each for each in parts if isinstance(each, list) and all(map(_is_number, each))]
        if len(lists) == len(parts):
            if all(len(each) == 4 for each in lists):
                return BoxMask(tuple((x, y, x + w, y + h) for x, y, w, h in lists))
            if all(len(each) >= 6 and len(each) % 2 == 0 for each in lists):
                return PolygonMask(tuple(map(tuple, lists)))
    raise ValueError(
        f"{_short(given)} is not a mask; expected a path, a run-length encoding, a box "
        "[x, y, width, height], or polygons [x, y, x, y, x, y, ...]"
    )


def _rle(given: dict[str, Any]) -> tuple[Any, Size]:
    counts, size = given.get("counts"), given.get("size")
    is_size = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)
    if not isinstance(counts, (str, list)) or not is_size:
        raise ValueError('a run-length encoding needs "counts" and "size", [height, width]')
    assert size is not None
    return (counts if isinstance(counts, str) else tuple(counts)), (size[0], size[1])


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_size(name: str, own: Sequence[int], size: Size) -> None:
    if tuple(own) != tuple(size):
        raise ValueError(
            f"the {name} has {own[1]} x {own[0]} pixels, expected those of the image, "
            f"{size[1]} x {size[0]}"
        )


def _check_box(low: Sequence[float], high: Sequence[float], size: Size, name: str) -> None:
    if high[0] <= 0 or high[1] <= 0 or low[0] >= size[1] or low[1] >= size[0]:
        raise ValueError(
            f"the {name} from {[float(x) for x in low]} to {[float(x) for x in high]} lies "
            f"outside of the image of {size[1]} x {size[0]} pixels"
        )


def _inside(corners: npt.NDArray[np.float64], size: Size) -> BoolMask:
    """The pixels whose centre has an odd number of edges to its left."""
    x, y = corners.T
    next_x, next_y = np.roll(corners, -1, axis=0).T
    centres = np.arange(size[0])[:, None] + 0.5
    rows, edges = np.nonzero((y <= centres) != (next_y <= centres))
    share = (centres[rows, 0] - y[edges]) / (next_y[edges] - y[edges])
    crossing = x[edges] + share * (next_x[edges] - x[edges])
    first = np.clip(np.ceil(crossing - 0.5), 0, size[1]).astype(np.int64)
    passed = np.zeros((size[0], size[1] + 1), dtype=np.int32)
    np.add.at(passed, (rows, first), 1)
    return passed.cumsum(axis=1)[:, :-1] % 2 == 1


def _pixels(start: float, end: float, count: int) -> slice:
    """The pixels whose centre lies in [start, end), at least the middle one."""
    first, last = math.ceil(start - 0.5), math.ceil(end - 0.5)
    if last <= first:
        first = math.floor((start + end) / 2)
        last = first + 1
    return slice(min(max(first, 0), count), min(max(last, 0), count))
