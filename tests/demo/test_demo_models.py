"""What ships: complete, small, and right about fresh scenes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.rendering import render
from captum_mllm.demo import DEMO_MODELS, DEMO_PROMPT, demo_folder, demo_picture
from captum_mllm.demo.architecture import VOCABULARY
from captum_mllm.demo.evaluate import evaluate, evaluation_scenes
from captum_mllm.models.processors import load_processor


@pytest.fixture(scope="module", params=DEMO_MODELS)
def demo(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    folder = demo_folder(request.param)
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), load_processor(folder)


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_folder_is_complete_and_at_most_5_megabytes(name: str) -> None:
    files = {path.name: path.stat().st_size for path in demo_folder(name).iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= set(files)
    assert sum(files.values()) <= 5_000_000


def test_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"'gpt'.*qwen2-vl"):
        demo_folder("gpt")


def test_vocabulary_of_the_folder_is_that_of_the_code(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    assert tuple(processor.tokenizer.convert_ids_to_tokens(range(len(VOCABULARY)))) == VOCABULARY
    assert model.config.text_config.vocab_size == len(VOCABULARY)
    assert model.dtype == torch.float32


@pytest.mark.parametrize(("scale", "content", "captions"), [(1.0, 0.95, 0.75), (0.75, 0.95, 0.7)])
def test_fresh_scenes_are_captioned(
    demo: tuple[Any, Any], scale: float, content: float, captions: float
) -> None:
    accuracy = evaluate(*demo, evaluation_scenes(40, seed=7, prior=0.5), scale)
    assert accuracy.content >= content
    assert accuracy.captions >= captions
    assert accuracy.pointing >= 0.5


def test_demo_picture_is_captioned_right(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    with Image.open(demo_picture()) as picture:
        assert picture.size == (224, 224)
        parts = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPT}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    answer = model.generate(**inputs)[0, inputs.input_ids.shape[1] :]
    scene = evaluation_scenes(2, seed=1, objects=3)[1]
    assert processor.tokenizer.decode(answer, skip_special_tokens=True) == str(caption(scene))
    np.testing.assert_array_equal(np.array(Image.open(demo_picture())), render(scene).image)


def test_weights_take_16_bits_each() -> None:
    for name in DEMO_MODELS:
        raw = (demo_folder(name) / "model.safetensors").read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        header.pop("__metadata__", None)
        assert {entry["dtype"] for entry in header.values()} == {"F16"}
