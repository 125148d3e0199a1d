"""TAM's layouts and OpenPSG, with a known pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_mllm.datasets import SampleError, open_samples
from tests.datasets.written import HEIGHT, WIDTH, write_image, write_json, write_levels

CATEGORIES = [{"id": 37, "name": "sports ball"}, {"id": 1, "name": "person"}]


def write_coco(folder: Path) -> Path:
    captions = [
        {"image_id": 42, "id": 1, "caption": "A man kicks a ball."},
        {"image_id": 42, "id": 2, "caption": " A ball and a person. "},
        {"image_id": 7, "id": 3, "caption": "Not of this split."},
    ]
    images = [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}, {"id": 43}, {"id": 44}]
    write_json(
        folder / "annotations/instances_minival2014.json",
        {"images": images, "categories": CATEGORIES},
    )
    write_json(folder / "annotations/captions_val2014.json", {"annotations": captions})
    for number in (42, 44):
        write_image(folder / f"image/{number:012d}.jpg")
    levels = np.zeros((HEIGHT, WIDTH))
    levels[3, 5] = 37
    write_levels(folder / "seg_label/000000000042.png", levels)
    return folder


def test_coco_in_tam_s_layout(tmp_path: Path) -> None:
    samples = open_samples(write_coco(tmp_path), on_error="skip")
    (sample,) = samples
    assert samples.format == "tam-coco"
    assert sample.id == "000000000042"
    assert sample.question == "Write a one-sentence caption for this image:"
    assert sample.references == ("A man kicks a ball.", "A ball and a person.")
    assert sample.labels is not None
    assert dict(sample.labels.categories) == {"ball": 37, "person": 1}
    assert np.argwhere(sample.label_image).tolist() == [[3, 5]]
    assert sample.label_image[3, 5] == 37
    messages = [str(error) for error in samples.errors]
    assert "image 2: there is no image 'image/000000000043.jpg'" in messages[0]
    assert "the image 000000000044 has no caption" in messages[1]


def test_annotations_that_are_not_coco_s_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_json(tmp_path / "annotations/captions_val2014.json", {"rows": []})
    with pytest.raises(ValueError, match="is not COCO's"):
        list(open_samples(tmp_path))


@pytest.mark.parametrize(
    ("name", "prompt"), [("GranDf", "around two sentences"), ("OpenPSG", "around three sentences")]
)
def test_rows_of_tam(tmp_path: Path, name: str, prompt: str) -> None:
    folder = tmp_path / name
    write_image(folder / "images/a.jpg")
    levels = np.zeros((HEIGHT, WIDTH))
    levels[1, 2] = 5
    write_levels(folder / "masks/a.png", levels)
    write_levels(folder / "masks/small.png", np.zeros((2, 2)))
    good = ["images/a.jpg", "A cat. It sleeps.", "masks/a.png", {"cat": 5}]
    bad: list[tuple[Any, str]] = [
        (good[:2], "expected a list of image"),
        ([*good[:3], {"cat": "5"}], "not an object from names to labels"),
        ([*good[:2], "masks/none.png", {}], "there is no label image"),
        ([*good[:2], "masks/small.png", {}], "2 x 2 pixels, expected those of the image"),
        (["images/none.jpg", *good[1:]], "there is no image"),
        ([good[0], "", *good[2:]], "the caption is empty"),
        ([good[0], 3, *good[2:]], "have to be texts"),
    ]
    own = ["images/a.jpg", "Say it:", ["A cat.", "One cat."], "masks/a.png", {"cat": 5}]
    write_json(folder / "anno.json", [good, *(row for row, _ in bad), own])
    samples = open_samples(folder, on_error="skip")
    first, last = samples
    assert samples.format == "tam"
    assert prompt in first.question
    assert (last.question, last.references) == ("Say it:", ("A cat.", "One cat."))
    assert first.label_image[1, 2] == 5 and first.label_image.sum() == 5
    for number, ((_, message), error) in enumerate(zip(bad, samples.errors, strict=True)):
        assert f"entry {number + 2}: " in str(error) and message in str(error)


def write_psg(folder: Path) -> Path:
    write_image(folder / "a.jpg")
    colors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colors[2, 3], colors[4:, 5] = (1, 2, 0), (0, 0, 1)
    Image.fromarray(colors).save(folder / "a.png")
    row = {
        "file_name": "a.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": "7",
        "pan_seg_file_name": "a.png",
        "segments_info": [
            {"id": 1 + 2 * 256, "category_id": 0, "iscrowd": 0, "isthing": 1, "area": 1},
            {"id": 65536, "category_id": 1, "iscrowd": 0, "isthing": 0, "area": 4},
        ],
        "annotations": [],
        "relations": [],
    }
    whole = {
        "data": [row, {**row, "image_id": "8"}, {**row, "image_id": "9", "segments_info": [{}]}],
        "thing_classes": ["cat"],
        "stuff_classes": ["wall-other-merged"],
        "predicate_classes": [],
        "test_image_ids": ["7", "9"],
    }
    return write_json(folder / "psg.json", whole)


def test_openpsg_has_a_region_for_each_class(tmp_path: Path) -> None:
    samples = open_samples(write_psg(tmp_path), on_error="skip")
    (sample,) = samples
    assert (samples.format, sample.id, sample.answer) == ("openpsg", "7", None)
    assert [region.text for region in sample.regions] == ["cat", "wall"]
    assert np.argwhere(sample.masks[0]).tolist() == [[2, 3]]
    assert sample.masks[1].sum() == 4
    assert sample.label_image[2, 3] == 1 and sample.label_image[5, 5] == 2
    assert "a segment is damaged" in str(samples.errors[0])


def test_a_panoptic_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_psg(tmp_path)
    write_levels(tmp_path / "a.png", np.zeros((3, 3)))
    with pytest.raises(SampleError, match="3 x 3 pixels"):
        list(open_samples(path))


def test_classes_of_openpsg_with_one_short_name_are_one_region(tmp_path: Path) -> None:
    path = write_psg(tmp_path)
    whole = json.loads(path.read_text())
    row = whole["data"][0]
    row["segments_info"].append({**row["segments_info"][1], "id": 2, "category_id": 2})
    colors = np.array(Image.open(tmp_path / "a.png"))
    colors[0, 0] = (2, 0, 0)
    Image.fromarray(colors).save(tmp_path / "a.png")
    write_json(path, {**whole, "data": [row], "stuff_classes": ["wall-brick", "wall-tile"]})
    (sample,) = open_samples(path)
    assert [region.text for region in sample.regions] == ["cat", "wall"]
    assert sample.masks[1].sum() == 5 and sample.masks[1][0, 0]
    assert sample.labels is not None and set(sample.labels.categories) == {"cat", "wall"}
    assert sample.label_image[0, 0] == sample.label_image[5, 5] == sample.labels.categories["wall"]
