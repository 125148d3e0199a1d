"""How far a run is, in a line."""

from __future__ import annotations

import pytest

from captum_mllm.evaluation import progress
from captum_mllm.evaluation.progress import Progress


def test_speed_and_time_left() -> None:
    watch = Progress("images", 100)
    assert watch.text(0.0) == "0 of 100 images, 0.00 a second"
    watch.done = 25
    assert watch.text(50.0) == "25 of 100 images, 0.50 a second, 2 min left"
    watch.done = 100
    assert watch.text(50.0) == "100 of 100 images, 2.00 a second"


def test_lines_come_at_most_every_two_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    watch = Progress("images", 10)
    for _ in range(10):
        now += 0.5
        watch(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["4", "8", "10"]
