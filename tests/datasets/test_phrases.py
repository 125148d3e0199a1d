"""GranD-f, RefCOCO, Flickr30k Entities, TextVQA and VizWiz, with a known pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captum_mllm.datasets import open_samples
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


def rle(*places: tuple[int, int]) -> dict[str, Any]:
    counts = compress_rle(encode_rle(pixels(*places)))
    return {"counts": counts, "size": [HEIGHT, WIDTH]}


def check_errors(samples: Any, *expected: str) -> None:
    assert samples.n_bad == len(expected)
    for error, message in zip(samples.errors, expected, strict=True):
        assert message in str(error)


def test_grounded_captions(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    groundings: dict[str, Any] = {
        "a ring": {"token_positives": [13, 19], "rle_masks": [rle((2, 7)), rle((0, 1))]},
        "A star": {"token_positives": [0, 6], "rle_masks": [rle((5, 5))]},
    }
    good = {"file_name": "a.jpg", "caption": '"A star and a a ring." ', "groundings": groundings}
    good["caption"] = '"A star beats a ring." '
    out = {"A star": {"token_positives": [0, 99], "rle_masks": [rle((5, 5))]}}
    none = {"A star": {"token_positives": [0, 6], "rle_masks": []}}
    box = {"A star": {"token_positives": [0, 6], "rle_masks": [[1, 2, 3, 4]]}}
    rows = [good, *({**good, "groundings": each} for each in (out, none, box, {"A star": 3}, []))]
    samples = open_samples(write_json(tmp_path / "GranDf_HA_GCG_val.json", rows), on_error="skip")
    (sample,) = samples
    assert samples.format == "grandf"
    assert [(region.text, region.start) for region in sample.regions] == [
        ("A star", 0),
        ("a ring", 13),
    ]
    assert np.argwhere(sample.masks[1]).tolist() == [[0, 1], [2, 7]]
    check_errors(
        samples,
        "the range [0, 99] has no word",
        "is not a mask",
        "has no run-length encodings",
        "the grounding of 'A star' is not an object",
        "'groundings' is []",
    )


def test_referring_expressions(tmp_path: Path) -> None:
    write_image(tmp_path / "train/a.jpg")
    good = {"image": "a.jpg", "answer": ["left star", "the star"], "bbox": [2.0, 3.0, 1.0, 1.0]}
    polygon = {**good, "segmentation": [[7, 2, 8, 2, 8, 3, 7, 3]]}
    rows = [
        good,
        polygon,
        {**good, "answer": []},
        {**good, "bbox": [1, 2]},
        {**good, "bbox": [99, 99, 3, 3]},
        {**good, "image": "b.jpg"},
    ]
    path = write_json(tmp_path / "refcoco_val.json", rows)
    samples = open_samples(path, images=tmp_path / "train", on_error="skip")
    boxed, drawn = samples
    assert samples.format == "refcoco"
    assert np.argwhere(boxed.masks[0]).tolist() == [[3, 2]]
    assert np.argwhere(drawn.masks[0]).tolist() == [[2, 7]]
    assert boxed.answer == boxed.regions[0].text == "left star"
    assert boxed.references == ("left star", "the star")
    check_errors(samples, "'answer' is []", "is not a mask", "outside", "no image 'b.jpg'")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        open_samples(tmp_path / "refs(unc).p")


def test_text_in_boxes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    good = {"image": "a.jpg", "question": "Which?", "answer": ["bus 12"], "bbox": [7, 2, 1, 1]}
    rows = [good, {**good, "question": None}, {**good, "bbox": [[0, 0, 3, 0, 3, 3]]}]
    samples = open_samples(write_lines(tmp_path / "textvqa.jsonl", rows), on_error="skip")
    (sample,) = samples
    assert (samples.format, sample.question, sample.answer) == ("textvqa", "Which?", "bus 12")
    assert np.argwhere(sample.masks[0]).tolist() == [[2, 7]]
    check_errors(samples, "there is no 'question'", "is not a box")


def test_vizwiz(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_image(tmp_path / f"val/{name}.jpg")
    for name in ("a", "b", "d"):
        write_levels(tmp_path / f"binary_masks_png/val/{name}.png", pixels((2, 7)) * 255)
    rows: dict[str, Any] = {
        "a.jpg": {"question": "What?", "answers": ["soup", "can", "can"]},
        "b.jpg": {"question": "What?", "most_common_answer": "tea", "answers": ["x"]},
        "c.jpg": {"question": "What?", "answers": ["soup"]},
        "d.jpg": {"question": "What?", "answers": ["", " "]},
        "e.jpg": {"question": "What?", "answers": ["soup"]},
        "f.jpg": 3,
    }
    path = write_json(tmp_path / "val_grounding.json", rows)
    for given in (tmp_path, path):
        samples = open_samples(given, on_error="skip")
        first, second = samples
        assert samples.format == "vizwiz"
        assert (first.answer, first.references) == ("can", ("can", "soup"))
        assert second.answer == "tea"
        assert np.argwhere(first.masks[0]).tolist() == [[2, 7]]
        check_errors(
            samples, "no mask", "all answers are empty", "no image 'e.jpg'", "expected a JSON"
        )
        assert "val_grounding.json, c.jpg: " in str(samples.errors[0])


ANNOTATION = """<annotation><filename>1.jpg</filename>
<object><name>10</name><name>11</name>
<bndbox><xmin>8</xmin><ymin>3</ymin><xmax>8</xmax><ymax>3</ymax></bndbox></object>
<object><name>11</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>1</ymax></bndbox></object>
<object><name>12</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""


def test_flickr30k_entities(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        write_image(tmp_path / f"flickr30k-images/{name}.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Annotations/1.xml").write_text(ANNOTATION)
    (tmp_path / "Annotations/2.xml").write_text("<annotation>")
    (tmp_path / "Annotations/4.xml").write_text("<annotation/>")
    sentence = "[/EN#10/people Two men] near [/EN#12/scene a lake] see [/EN#11/other/clothing a"
    lines = sentence + " red hat] .\n[/EN#10/people Two men] [/EN#0/notvisual it .\n"
    (tmp_path / "Sentences/1.txt").write_text(lines)
    for name in "234":
        (tmp_path / f"Sentences/{name}.txt").write_text("A dog .\n")
    samples = open_samples(tmp_path, on_error="skip")
    (sample,) = samples
    assert (samples.format, sample.id) == ("flickr30k", "1#1")
    assert sample.answer == "Two men near a lake see a red hat ."
    assert [(region.text, region.start) for region in sample.regions] == [
        ("Two men", 0),
        ("a red hat", 24),
    ]
    # Pixels are counted from 1.
    assert np.argwhere(sample.masks[0]).tolist() == [[2, 7]]
    assert np.argwhere(sample.masks[1]).tolist() == [[0, 0], [0, 1], [2, 7]]
    check_errors(
        samples, "a phrase has no end", "2.xml is damaged", "there is no file", "no image '4.jpg'"
    )
    assert "1.txt, line 2: " in str(samples.errors[0])
