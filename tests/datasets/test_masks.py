"""Masks against slow decoders, and with known pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_mllm.datasets.masks import PanopticMask, PngMask, decode_rle, parse_mask
from tests.datasets.written import compress_rle, encode_rle, write_levels


def decode_slowly(text: str, height: int, width: int) -> np.ndarray:
    """COCO's compressed run-length encoding, character by character and pixel by pixel."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        number, shift, digit = 0, 0, 32
        while digit & 32:
            digit = ord(text[place]) - 48
            number += (digit & 31) << shift
            place, shift = place + 1, shift + 5
        if digit & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
    mask = np.zeros((height, width), dtype=bool)
    pixel, value = 0, False
    for count in counts:
        for _ in range(count):
            mask[pixel % height, pixel // height] = value
            pixel += 1
        value = not value
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_equal_a_slow_decoder(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 90, 2)
    mask = generator.random((height, width)) < generator.choice([0.0, 0.01, 0.5, 0.99, 1.0])
    mask[height // 2 :] ^= True
    counts = encode_rle(mask)
    text = compress_rle(counts)
    assert np.array_equal(decode_slowly(text, height, width), mask)
    for given in (text, text.encode(), counts):
        assert np.array_equal(decode_rle(given, (height, width)), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 2], "5 pixels, expected 2 x 2"),
        ([5, -1], "negative or too long"),
        ([1.5, 2.5], "not integers"),
        ("\x01", "damaged"),
        ("o", "damaged"),
        ("oooooooooo1", "damaged"),
        ("", "0 pixels"),
    ],
)
def test_damaged_run_lengths_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(counts, (2, 2))


def read(given: Any, size: tuple[int, int] = (8, 12), folder: Path = Path()) -> np.ndarray:
    mask = parse_mask(given, folder)
    mask.check(size)
    return mask.read(size)


def test_a_box_has_the_pixels_whose_centres_it_holds() -> None:
    expected = np.zeros((8, 12), dtype=bool)
    expected[3:5, 2:6] = True
    assert np.array_equal(read([2, 3, 4, 2]), expected)
    assert np.array_equal(read([1.6, 2.6, 4.0, 2.0]), expected)
    assert np.argwhere(read([5.1, 2.1, 0.2, 0.2])).tolist() == [[2, 5]]
    assert read([-3, -3, 100, 100]).all()
    assert read([[0, 0, 1, 1], [11, 7, 1, 1]]).sum() == 2


def test_a_polygon_has_the_pixels_within_it() -> None:
    found = read([[2, 1, 8, 1, 8, 5, 2, 5]])
    assert found[3, 4] and found[1, 2] and found[4, 7]
    assert not found[0, 4] and not found[3, 9] and not found[6, 4]
    apart = read([[0, 0, 3, 0, 3, 3, 0, 3], [9, 5, 12, 5, 12, 8, 9, 8]])
    assert apart[1, 1] and apart[6, 10] and not apart[4, 6]
    assert np.array_equal(read([2, 1, 8, 1, 8, 5, 2, 5]), found)


@pytest.mark.parametrize("seed", range(10))
def test_polygons_equal_a_count_of_edges_for_each_pixel(seed: int) -> None:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-3, 15, (generator.integers(3, 9), 2))
    found = read(corners.flatten().tolist(), (9, 12))
    for row in range(9):
        for column in range(12):
            crossed = 0
            for (x, y), (u, v) in zip(corners, np.roll(corners, -1, axis=0)):
                if (y > row + 0.5) != (v > row + 0.5):
                    crossed += x + (row + 0.5 - y) * (u - x) / (v - y) <= column + 0.5
            assert found[row, column] == crossed % 2


def test_levels_of_a_file(tmp_path: Path) -> None:
    levels = np.zeros((8, 12))
    levels[3, 5], levels[0, 0] = 7, 9
    path = write_levels(tmp_path / "mask.png", levels)
    assert np.argwhere(read("mask.png", folder=tmp_path)).tolist() == [[0, 0], [3, 5]]
    assert np.argwhere(PngMask(path, 7).read((8, 12))).tolist() == [[3, 5]]


def test_panoptic_ids_are_made_of_three_colours(tmp_path: Path) -> None:
    colors = np.zeros((8, 12, 3), dtype=np.uint8)
    colors[2, 3], colors[4, 5] = (1, 2, 3), (9, 0, 0)
    Image.fromarray(colors).save(tmp_path / "panoptic.png")
    mask = PanopticMask(tmp_path / "panoptic.png", (1 + 2 * 256 + 3 * 65536,))
    mask.check((8, 12))
    assert np.argwhere(mask.read((8, 12))).tolist() == [[2, 3]]


@pytest.mark.parametrize(
    "given", [None, "", 3, [], [1, 2], [1, 2, 3, "4"], {}, {"counts": "1"}, [[1, 2, 3, 4, 5]]]
)
def test_what_is_no_mask_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a mask|needs \"counts\""):
        parse_mask(given, Path())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([20, 3, 4, 2], "outside of the image of 12 x 8"),
        ([2, 3, 0, 2], "has no area"),
        ([[50, 1, 60, 1, 60, 5]], "outside of the image"),
        ({"counts": [4], "size": [2, 2]}, "2 x 2 pixels, expected those of the image, 12 x 8"),
    ],
)
def test_a_mask_that_does_not_fit_the_image_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mask(given, Path()).check((8, 12))
