"""Small files in the formats of public data, written by the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Width and height of every image that is written here.
WIDTH, HEIGHT = 12, 8


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def write_levels(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Rows that are strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def pixels(*places: tuple[int, int]) -> np.ndarray:
    """A mask of single pixels, by row and column."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for row, column in places:
        mask[row, column] = True
    return mask


def encode_rle(mask: np.ndarray) -> list[int]:
    """Runs down the columns, one pixel after the other."""
    counts, value, length = [], False, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(length)
                value, length = not value, 0
            length += 1
    return [*counts, length]


def compress_rle(counts: list[int]) -> str:
    """COCO's compressed counts, one number after the other."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        while True:
            digit, number = number & 31, number >> 5
            is_last = number == (-1 if digit & 16 else 0)
            text += chr((digit if is_last else digit | 32) + 48)
            if is_last:
                break
    return text
