"""Formats that are told apart, and options that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captum_mllm.datasets import SampleError, open_samples
from tests.datasets.written import write_image, write_json, write_lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coco2"}, "expected auto or one of jsonl, folder"),
        ({"on_error": "ignore"}, "expected one of 'skip', 'raise'"),
        ({"limit": 0}, "expected an integer of at least 1"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"images": "absent"}, "there is no folder of images absent"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_samples(tmp_path, **options)


def test_what_is_of_no_known_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_samples(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds neither images nor a file"):
        open_samples(tmp_path)
    for value in ([{"a": 1}], [], [3]):
        path = write_json(tmp_path / "data.json", value)
        with pytest.raises(ValueError, match="is of no known format"):
            open_samples(path)


def test_a_fingerprint_tells_rows_and_not_files(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "prompt": "What?"}, {"image": "b.png", "prompt": "Why?"}]
    path = write_json(tmp_path / "data.json", rows)
    before = open_samples(path).fingerprint()
    write_image(tmp_path / "a.png")
    assert open_samples(path).fingerprint() == before
    assert open_samples(path, limit=1).fingerprint() != before
    write_json(path, [rows[0], {**rows[1], "prompt": "Who?"}])
    assert open_samples(path).fingerprint() != before


def test_a_limit_counts_rows(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    samples = open_samples(tmp_path, limit=2)
    assert [each.id for each in samples] == [each.id for each in samples] == ["a.png", "b.png"]


def test_results_among_listed_images_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png")
    samples = open_samples(tmp_path / "photos")
    for folder in (tmp_path / "photos", tmp_path / "photos" / "b" / "run"):
        with pytest.raises(ValueError, match="would count as data"):
            samples.check_output(folder)
    samples.check_output(tmp_path / "run")
    write_json(tmp_path / "photos" / "questions.json", [{"image": "a.png"}])
    open_samples(tmp_path / "photos").check_output(tmp_path / "photos" / "run")


def test_refused_rows_hold_no_samples(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    samples = open_samples(tmp_path, on_error="skip")
    (sample,) = samples
    try:
        raise sample.error("wrong")
    except SampleError as error:
        samples.refuse(error)
    (kept,) = samples.errors
    assert kept.__traceback__ is None and str(kept).endswith("wrong") and kept.id == "a.png"


def test_own_rows_with_a_label_are_no_pope(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    row = {"image": "a.png", "text": "Is there a cat?", "label": "yes"}
    assert open_samples(write_json(tmp_path / "pope.json", [row])).format == "pope"
    own = write_json(tmp_path / "own.json", [{**row, "answer": "Yes, there is."}])
    assert open_samples(own).format == "jsonl"


def test_a_damaged_row_has_one_fingerprint_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"image": "a.png"}, "{damaged"])
    monkeypatch.chdir(tmp_path)
    assert open_samples("data.jsonl").fingerprint() == open_samples(path).fingerprint()
