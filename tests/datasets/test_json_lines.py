"""Our own rows: every kind of mask, and every kind of damage with its line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_mllm.datasets import SampleError, open_samples
from tests.datasets.written import (
    HEIGHT,
    WIDTH,
    compress_rle,
    encode_rle,
    pixels,
    write_image,
    write_json,
    write_levels,
    write_lines,
)

ANSWER = "A red star and a blue ring."
ROW: dict[str, Any] = {"image": "a.png", "prompt": "What?", "answer": ANSWER}
COUNTS = encode_rle(pixels((2, 7)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "a.png")
    write_levels(tmp_path / "mask.png", pixels((2, 7)) * 255)
    write_levels(tmp_path / "small.png", np.ones((3, 3)))
    write_levels(tmp_path / "empty.png", pixels())
    (tmp_path / "note.png").write_text("not an image")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def with_mask(mask: Any, words: Any = "star") -> dict[str, Any]:
    return {**ROW, "regions": [{"words": words, "mask": mask}]}


@pytest.mark.parametrize(
    "mask",
    [
        "mask.png",
        {"counts": COUNTS, "size": [HEIGHT, WIDTH]},
        {"counts": compress_rle(COUNTS), "size": [HEIGHT, WIDTH]},
        [7, 2, 1, 1],
        [[7, 2, 8, 2, 8, 3, 7, 3]],
    ],
)
def test_each_kind_of_mask_has_the_known_pixel(folder: Path, mask: Any) -> None:
    (sample,) = open_samples(write_lines(folder / "data.jsonl", [with_mask(mask)]))
    assert np.argwhere(sample.masks[0]).tolist() == [[2, 7]]
    assert (sample.question, sample.answer, sample.references) == ("What?", ANSWER, (ANSWER,))
    assert sample.size == (HEIGHT, WIDTH)
    assert sample.source.endswith("data.jsonl, line 1")


def test_words_are_a_text_or_a_range_of_characters(folder: Path) -> None:
    rows = [with_mask([0, 0, 1, 1], words) for words in (["Blue", "ring"][0], [17, 26])]
    first, second = open_samples(write_lines(folder / "data.jsonl", rows))
    assert (first.regions[0].text, first.regions[0].start) == ("Blue", None)
    assert (second.regions[0].text, second.regions[0].start) == ("blue ring", 17)


#: 26 kinds of damaged rows, and what is said of each.
DAMAGED: list[tuple[Any, str]] = [
    ('{"image": ', "the line is not JSON"),
    ("[1, 2]", "expected a JSON object"),
    ("\udcff", "the line is not JSON"),
    ({"prompt": "What?"}, "there is no 'image'"),
    ({**ROW, "image": "absent.png"}, "there is no image 'absent.png'"),
    ({**ROW, "image": ""}, "'image' is empty"),
    ({**ROW, "image": 3}, "'image' is 3, which is a int"),
    ({**ROW, "image": "note.png"}, "cannot be read"),
    ({**ROW, "image": "cut.png"}, "cannot be read"),
    ({**ROW, "prompt": " "}, "'prompt' is empty"),
    ({**ROW, "answer": ""}, "'answer' is empty"),
    ({**ROW, "answer": ["a"]}, "'answer' is ['a'], which is a list"),
    ({**ROW, "label": "maybe"}, "expected yes or no"),
    ({**ROW, "regions": "star"}, "'regions' is 'star', which is a str"),
    ({**ROW, "regions": [{"words": "star"}]}, 'not an object with "words" and "mask"'),
    (with_mask("absent.png"), "there is no mask"),
    (with_mask("small.png"), "3 x 3 pixels, expected those of the image, 12 x 8"),
    (with_mask({"counts": [9], "size": [3, 3]}), "3 x 3 pixels, expected"),
    (with_mask({"counts": "!!", "size": [8, 12]}), "damaged"),
    (with_mask([99, 99, 1, 1]), "outside of the image"),
    (with_mask("empty.png"), "is empty"),
    (with_mask([1, 2]), "is not a mask"),
    (with_mask([0, 0, 1, 1], "cat"), "the phrase 'cat' is not in the answer"),
    (with_mask([0, 0, 1, 1], "sta"), "the phrase 'sta' is not in the answer"),
    (with_mask([0, 0, 1, 1], [20, 99]), "the range [20, 99] has no word"),
    (with_mask([0, 0, 1, 1], [1, "2"]), "is not a range"),
]


@pytest.mark.parametrize(("row", "message"), DAMAGED)
def test_a_damaged_row_is_named_with_its_line(folder: Path, row: Any, message: str) -> None:
    path = folder / "data.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    good = json.dumps(ROW)
    path.write_bytes(f"{good}\n{line}\n{good}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(SampleError) as caught:
        [sample.masks for sample in open_samples(path)]
    assert "data.jsonl, line 2: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_lost_of_the_good_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row for damaged, _ in DAMAGED for row in (damaged, ROW)]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "data.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    samples = open_samples(path, on_error="skip")
    with caplog.at_level(logging.WARNING):
        good = []
        for sample in samples:
            try:
                assert sample.masks.ndim == 3
            except SampleError as error:
                samples.refuse(error)
                continue
            good.append(sample.number)
    assert good == list(range(1, len(rows), 2))
    assert samples.n_bad == len(samples.errors) == len(DAMAGED)
    for number, ((_, message), record) in enumerate(zip(DAMAGED, caplog.records, strict=True)):
        assert f"line {2 * number + 1}: " in record.getMessage()
        assert message in record.getMessage()


def test_a_csv_of_questions_and_a_list(folder: Path) -> None:
    path = folder / "questions.csv"
    path.write_text('image,question,answer,id\na.png,"What, now?",,x\na.png,Why?,"So.",y\na.png\n')
    samples = open_samples(path, on_error="skip")
    assert [(each.id, each.question, each.answer) for each in samples] == [
        ("x", "What, now?", None),
        ("y", "Why?", "So."),
    ]
    assert "line 4: the line has not as many cells" in str(samples.errors[0])
    listed = open_samples(write_json(folder / "data.json", [ROW, ROW]))
    assert [each.number for each in listed] == [0, 1]


def test_a_folder_of_images_with_and_without_questions(tmp_path: Path) -> None:
    write_image(tmp_path / "b.jpg")
    write_image(tmp_path / "deep" / "a.PNG".lower())
    write_image(tmp_path / ".hidden" / "c.png")
    (tmp_path / "readme.txt").write_text("no image")
    samples = open_samples(tmp_path, prompt="What is it?")
    assert samples.format == "folder"
    assert [(each.id, each.question) for each in samples] == [
        ("b.jpg", "What is it?"),
        ("deep/a.png", "What is it?"),
    ]
    write_lines(tmp_path / "questions.jsonl", [{"image": "deep/a.png", "question": "Why?"}])
    (sample,) = open_samples(tmp_path)
    assert sample.question == "Why?"


def test_ranges_count_the_white_space_before_the_answer(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    region = {"words": [3, 6], "mask": [0, 0, 2, 2]}
    row = {"image": "a.png", "answer": " A red star", "regions": [region]}
    (sample,) = open_samples(write_lines(tmp_path / "data.jsonl", [row]))
    assert (sample.answer, sample.regions[0].text) == ("A red star", "red")
    early = {**row, "answer": "   A", "regions": [{**region, "words": [0, 2]}]}
    samples = open_samples(write_lines(tmp_path / "data.jsonl", [early]), on_error="skip")
    assert not list(samples) and "has no word of the answer" in str(samples.errors[0])


def test_masks_that_fail_otherwise_are_bad_rows(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    mask = write_levels(tmp_path / "mask.png", np.ones((HEIGHT, WIDTH)))
    # A chunk whose name is no name, which Pillow meets when it reads the pixels.
    mask.write_bytes(mask.read_bytes().replace(b"IEND", b"\0\0\0\0").replace(b"IDAT", b"\1\2\3\4"))
    large = {"counts": [2**70], "size": [HEIGHT, WIDTH]}
    masks = ["mask.png", large, [0, 0, 10**400, 2]]
    rows = [
        {"image": "a.png", "answer": "a star", "regions": [{"words": "star", "mask": each}]}
        for each in masks
    ]
    samples = open_samples(write_lines(tmp_path / "data.jsonl", rows), on_error="skip")
    for row in samples.rows():
        try:
            sample = row.make()
            sample.check()
            _ = sample.masks
        except SampleError as error:
            samples.refuse(error)
    assert samples.n_bad == len(rows)
