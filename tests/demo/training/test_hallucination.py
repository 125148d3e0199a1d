"""What a model names that is not there, on models whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.demo import demo_folder
from captum_mllm.demo.training import hallucination as module
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.demo.training.hallucination import hallucination
from captum_mllm.models.loading import load_processor

STAR = SceneObject("star", "red", x=0.25, y=0.5, radius=0.12)
RING = SceneObject("ring", "blue", x=0.75, y=0.5, radius=0.12)


def test_objects_that_are_there_are_named_and_others_seldom() -> None:
    folder = demo_folder("qwen2-vl")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = hallucination(model, load_processor(folder), evaluation_scenes(16, seed=5))
    assert 4 <= found.objects <= 16
    assert found.present >= 0.75
    assert max(found.free, found.led, found.finished) <= 0.4


def test_rates_are_shares_of_the_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int | None]] = []

    def answer(model: Any, processor: Any, image: Any, words: list[str], limit: Any) -> list[str]:
        asked.append((words, limit))
        return [["ring"], ["star"], ["ring"], ["ring"]][(len(asked) - 1) % 4]

    monkeypatch.setattr(module, "_continue", answer)
    found = hallucination(None, None, [Scene((STAR, RING)), Scene((STAR,))])
    assert (found.objects, found.present, found.free) == (1, 1.0, 0.0)
    assert (found.led, found.finished) == (1.0, 1.0)
    led, own, again, finished = asked
    assert led == again and led[0][-1] == "a" and own == ([], None)
    assert finished[0] == [*led[0], "blue"]


def test_scenes_without_a_second_object_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more objects"):
        hallucination(None, None, [Scene((STAR,))])
