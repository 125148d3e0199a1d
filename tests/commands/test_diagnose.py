"""Risks of words from the command line: the table, JSON, the page, and one's own calibration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captum_mllm import MLLM
from captum_mllm.cli import main
from captum_mllm.demo import demo_image
from captum_mllm.evaluation.labelled_words import LabelledAnswer, LabelledWords, read_words
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
    Calibration.load(file).save(other := tmp_path / "other.json")
    other.write_text(other.read_text(encoding="utf-8").replace('"qwen2-vl"', '"a-bus"'))
    assert main(["diagnose", "--answer", ANSWER, "--calibration", str(other)]) == 0
    assert "is of 'a-bus', and this model is 'qwen2-vl'" in capsys.readouterr().err
    # The page tells the same risks.
    assert '"calibrated":true' in page.read_text(encoding="utf-8").replace(" ", "")


def test_images_and_their_twins_are_split_by_chance_or_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.open(demo_image())
    lines = []
    for number in range(6):
        for name, word in ((f"{number}_original", "star"), (f"{number}_removed", "cross")):
            image.save(tmp_path / f"{name}.png")
            kind = "present" if word == "star" else "absent"
            line = {"image": f"{name}.png", "prompt": "Describe the image.", kind: [word]}
            lines.append({**line, "answer": f"a red {word}"})
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    read: list[list[str]] = []

    def watched(mllm: MLLM, answers: list[LabelledAnswer], watch: Any) -> LabelledWords:
        read.append([answer.group for answer in answers])
        return read_words(mllm, answers, watch)

    monkeypatch.setattr("captum_mllm.evaluation.labelled_words.read_words", watched)
    command = ["calibrate", str(labels), "--output", str(tmp_path / "calibration.json")]
    assert main(command) == 0
    for part in read:
        assert len(part) == 6 and len({name.split("_")[1] for name in part}) == 2
    grouped = [{**line, "group": line["image"][0]} for line in lines]
    labels.write_text("\n".join(map(json.dumps, grouped)), encoding="utf-8")
    assert main(command) == 0
    for part in read[2:]:
        assert len(set(part)) == 3 and all(part.count(name) == 2 for name in part)
    labels.write_text(json.dumps(lines[0]), encoding="utf-8")
    assert main(command) == 2
