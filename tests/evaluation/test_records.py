"""Records come back from their line as they were."""

from __future__ import annotations

import pytest

from captum_mllm.evaluation.records import Record, Score


def record(number: int) -> Record:
    scores = {"pointing": Score(0.1 + 0.2, 3.0), "mass": Score(1 / 3, 1.0)}
    return Record("demo/m", "caption", number, {"lens": scores}, {"0.5": scores}, {"lens": scores})


def test_records_come_back_exactly() -> None:
    assert Record.from_json(record(1).to_json()) == record(1)
    assert record(1).key == ("demo/m", "caption", 1)


@pytest.mark.parametrize("line", ["not JSON", "{}", "[1]", '{"methods": 3}'])
def test_another_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"not a record|Expecting value"):
        Record.from_json(line)
