"""A page for each sample of a data set, and what is beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from captum_mllm import MLLMAttributionResult
from captum_mllm.cli import main
from captum_mllm.commands.explain_data import Explained
from captum_mllm.demo import demo_folder
from tests.datasets.written import write_image, write_json, write_lines
from tests.evaluation.exported import export_lines


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = export_lines(tmp_path_factory.mktemp("data"), 3)
    rows: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["id"] = "<b>second</b>"
    rows.insert(2, {"image": "absent.png", "prompt": "What?"})
    del rows[3]["answer"], rows[3]["regions"]
    return write_lines(path, rows)


def explain(data: Path, output: Path, *more: str) -> int:
    arguments = ["explain", str(data), "--method", "logit-lens", "--device", "cpu", "--quiet"]
    return main([*arguments, "--on-error", "skip", "--output", str(output), *more])


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_pages_maps_and_an_index(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(data, tmp_path / "out", "--max-new-tokens", "4") == 0
    out, err = capsys.readouterr()
    assert "3 answers are explained" in out and "1 bad rows were skipped" in err
    lines = (tmp_path / "out" / "explained.jsonl").read_text().splitlines()
    found = [Explained.from_json(line) for line in lines]
    assert [each.number for each in found] == [0, 1, 2, 3]
    assert "scenes.jsonl, line 3: there is no image" in found[2].error
    for each in found[:2] + found[3:]:
        path = tmp_path / "out" / "maps" / f"{each.name}.safetensors"
        result = MLLMAttributionResult.load(path)
        assert " ".join(result.output_words) == each.answer
        assert "<!doctype html>" in (tmp_path / "out/pages" / f"{each.name}.html").read_text()
    assert len(found[3].answer.split()) == 4
    index = (tmp_path / "out" / "index.html").read_text()
    assert index.count("<li>") == 3 and 'href="pages/000003.html"' in index
    assert "&lt;b&gt;second&lt;/b&gt;" in index and "<b>second" not in index
    assert "1 could not be explained" in index


def test_processes_share_the_data_and_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain(data, tmp_path / "one", "--batch-size", "2") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert explain(data, tmp_path / "two", "--batch-size", "2") == 0
    assert not (tmp_path / "two" / "index.html").exists()
    torn = tmp_path / "two" / "explained.rank0.jsonl"
    torn.write_text(torn.read_text()[:-9])
    monkeypatch.setenv("RANK", "1")
    assert explain(data, tmp_path / "two", "--batch-size", "2") == 0
    assert not (tmp_path / "two" / "index.html").exists()
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name)
    assert explain(data, tmp_path / "two", "--batch-size", "2", "--resume") == 0
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, content in one.items():
        if name.endswith(".safetensors"):
            # The order of its header is not fixed.
            first, second = (load(part[name]) for part in (one, two))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[part], second[part]) for part in first)
        else:
            assert content == two[name], name
    assert explain(data, tmp_path / "two", "--batch-size", "2") == 2
    assert explain(data, tmp_path / "two", "--batch-size", "3", "--resume") == 2


def test_maps_as_images_of_16_bits(data: Path, tmp_path: Path) -> None:
    assert explain(data, tmp_path / "out", "--maps", "png", "--limit", "1") == 0
    folder = tmp_path / "out" / "maps" / "000000"
    facts = json.loads((folder / "maps.json").read_text())
    assert explain(data, tmp_path / "whole", "--limit", "1") == 0
    result = MLLMAttributionResult.load(tmp_path / "whole" / "maps" / "000000.safetensors")
    assert [word["word"] for word in facts["words"]] == result.output_words
    for place, word in enumerate(facts["words"]):
        with Image.open(folder / word["file"]) as image:
            assert image.mode.startswith("I")
            values = np.array(image) * facts["step"]
        expected = result.map(list(result.words[place])).clip(0, None)
        assert np.abs(values - expected).max() <= facts["step"]


def test_rows_of_two_images_and_a_chat_for_all(data: Path, tmp_path: Path) -> None:
    prompt = "Describe the image."
    rows: list[dict[str, Any]] = [
        {"images": ["0.png", "1.png"], "prompt": prompt, "answer": "a star"},
        {"images": ["0.png", "1.png"], "prompt": prompt, "answer": "a star", "explained": 1},
    ]
    both = write_lines(data.parent / "both.jsonl", rows)
    assert explain(both, tmp_path / "both", "--maps", "png") == 0
    facts = [
        json.loads((tmp_path / "both" / "maps" / name / "maps.json").read_text())
        for name in ("000000", "000001")
    ]
    listed = [(word["word"], word.get("image"), word["file"]) for word in facts[0]["words"]]
    assert listed == [
        ("a", 0, "000-0.png"),
        ("a", 1, "000-1.png"),
        ("star", 0, "001-0.png"),
        ("star", 1, "001-1.png"),
    ]
    assert [word["file"] for word in facts[1]["words"]] == ["000.png", "001.png"]
    part = {"type": "text", "text": "a star. {question}"}
    turns = [{"role": "user", "content": [{"type": "image"}, part]}]
    chat = write_json(tmp_path / "chat.json", turns)
    more = ["--limit", "1", "--messages", str(chat)]
    assert explain(data, tmp_path / "chat", *more) == 0
    result = MLLMAttributionResult.load(tmp_path / "chat" / "maps" / "000000.safetensors")
    assert "".join(result.input_tokens).startswith("a star . describe the image .")
    assert explain(data, tmp_path / "chat", *more[:2], "--resume") == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--answer", "a"], "--answer is for single images"),
        (["--batch-size", "0"], "expected at least 1"),
        (["--explained", "1"], "--explained is for several images"),
        (["--format", "poem"], "expected auto or one of"),
        (["--images", os.devnull], "there is no folder of images"),
    ],
)
def test_wrong_options_are_refused(
    data: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(data, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err


def test_a_run_keeps_what_changes_its_results(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert explain(data, output, "--limit", "1", "--model", "demo/absent") == 2
    # A model that cannot be loaded leaves no run behind.
    assert not output.exists()
    assert explain(data, output, "--limit", "1", "--resume") == 2
    assert "there is no run" in capsys.readouterr().err
    assert explain(data, output, "--limit", "1") == 0
    capsys.readouterr()
    for more in (["--max-new-tokens", "3"], ["--processor", str(demo_folder("qwen2-vl"))]):
        assert explain(data, output, "--limit", "1", "--resume", *more) == 2
        assert more[0].strip("-").replace("-", "_") in capsys.readouterr().err
    assert explain(data, output, "--limit", "1", "--resume", "--format", "jsonl") == 0


def test_results_do_not_go_among_the_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png")
    assert explain(tmp_path, tmp_path / "explanation") == 2
    assert "would count as data" in capsys.readouterr().err
