"""Records come back from their file as they were, and a torn line is no record."""

from __future__ import annotations

from pathlib import Path

import pytest

from captum_mllm.evaluation.records import Record, Score, read_records, write_records


def record(number: int) -> Record:
    scores = {"pointing": Score(0.1 + 0.2, 3.0), "mass": Score(1 / 3, 1.0)}
    return Record("demo/m", "caption", number, {"lens": scores}, {"0.5": scores}, {"lens": scores})


def test_records_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [record(0), record(1)])
    assert read_records(path) == [record(0), record(1)]
    assert read_records(path)[1].key == ("demo/m", "caption", 1)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, [record(0), record(1)])
    path.write_text(path.read_text()[:-20])
    assert read_records(path) == [record(0)]
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["not JSON", "{}", "[1]", '{"methods": 3}'])
def test_another_line_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record(0).to_json() + "\n" + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_records(path)
