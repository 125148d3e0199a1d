"""Risks of words from the command line: the table, JSON, the page, and one's own calibration."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from captum_mllm.cli import main
from captum_mllm.explain import Calibration

ANSWER = "a striped red cross is above a blue triangle"


def test_diagnose_marks_the_word_that_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--answer", ANSWER]) == 0
    printed = capsys.readouterr()
    answer, *lines = printed.out.splitlines()
    assert answer == ANSWER
    rows = [line.split(maxsplit=3) for line in lines]
    assert [row[2] for row in rows] == ["striped", "red", "cross", "blue", "triangle"]
    assert {row[2] for row in rows if row[1] == "high"} == {"cross"}
    assert "calibrate" in printed.err


def test_a_calibration_makes_probabilities_of_risks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "calibration.json", tmp_path / "page.html"
    assert main(["calibrate", "--scenes", "2", "--output", str(file)]) == 0
    printed = capsys.readouterr()
    assert "word probability" in printed.out
    # A line of progress at the end at least.
    assert re.search(r"(\d+) of \1 answers", printed.err)
    assert Calibration.load(file).model == "qwen2-vl"
    options = ["--calibration", str(file), "--json", "--output", str(page)]
    assert main(["diagnose", "--answer", ANSWER, *options]) == 0
    printed = capsys.readouterr()
    risks = {each["word"]: each for each in json.loads(printed.out)}
    assert risks["cross"]["calibrated"] and risks["cross"]["risk"] > risks["triangle"]["risk"]
    assert "no calibration" not in printed.err
    # The page tells the same risks.
    assert '"calibrated":true' in page.read_text(encoding="utf-8").replace(" ", "")
