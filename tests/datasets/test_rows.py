"""Rows come one at a time, whatever the file's size, and a cut is told where it is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from captum_mllm.datasets import SampleError, open_samples
from captum_mllm.datasets import rows as rows_module
from captum_mllm.datasets.rows import json_array, json_lines
from tests.datasets.written import write_image, write_json

VALUES = [1, -2.5, 'a ] , [ \\ " é', [1, [2]], {"k": {"v": None}}, True, "x" * 300, 12345678]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_as_json_reads_it(
    tmp_path: Path, chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_CHUNK", chunk)
    path = tmp_path / "list.json"
    for values in (VALUES, VALUES[:1], []):
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert [row.value for row in json_array(path)] == values


@pytest.mark.parametrize("cut", [1, 2, 5, 40])
def test_what_lies_before_a_cut_is_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "list.json"
    values = [{"n": number} for number in range(9)]
    path.write_text(json.dumps(values)[:-cut])
    *good, last = (row.value for row in json_array(path))
    assert good == values[: len(good)] and len(good) >= 5
    assert isinstance(last, SampleError) and f"entry {len(good) + 1}" in str(last)


def test_what_is_no_list_is_told(tmp_path: Path) -> None:
    (row,) = json_array(write_json(tmp_path / "object.json", {"a": 1}))
    assert "expected a JSON list" in str(row.value)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_many_rows_take_no_more_memory(tmp_path: Path, ending: str) -> None:
    write_image(tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "prompt": "What is in this image? " * 4})
    peaks = []
    for count in (1000, 20000):
        lines = [row] * count
        text = "\n".join(lines) if ending == "jsonl" else "[" + ",\n".join(lines) + "]"
        path = tmp_path / f"data.{ending}"
        path.write_text(text)
        del lines, text
        samples = open_samples(path)
        tracemalloc.start()
        assert sum(1 for _ in samples.rows()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_a_mark_at_the_beginning_of_a_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}')
    assert [(row.source[-6:], row.value) for row in json_lines(path)] == [
        ("line 1", {"a": 1}),
        ("line 3", {"a": 2}),
    ]


def test_other_bytes_than_utf8_are_a_bad_row(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    text = "image,prompt\na.png,un café\na.png,a tea\n"
    (tmp_path / "data.csv").write_bytes(text.encode("latin-1"))
    listed = json.dumps([{"image": "a.png", "prompt": p} for p in ("un café", "a tea")])
    listed = listed.replace("\\u00e9", "é")
    (tmp_path / "data.json").write_bytes(listed.encode("latin-1"))
    for name in ("data.csv", "data.json"):
        samples = open_samples(tmp_path / name, "jsonl", on_error="skip")
        assert [each.question for each in samples] == ["a tea"]
        assert "not in UTF-8" in str(samples.errors[0])
