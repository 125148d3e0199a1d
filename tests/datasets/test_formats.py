"""Formats that are told apart, and options that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captum_mllm.datasets import open_samples
from tests.datasets.written import write_image, write_json


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
