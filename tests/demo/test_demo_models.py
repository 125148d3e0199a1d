"""What ships: complete, small, and right about fresh scenes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from captum_mllm.demo import DEMO_MODELS, DEMO_PROMPT, DEMO_PROMPTS, demo_folder, demo_image
from captum_mllm.demo.training.evaluate import evaluate, evaluation_scenes
from captum_mllm.models.loading import load_processor


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


def test_model_has_an_output_for_every_token_and_is_in_full_precision(
    demo: tuple[Any, Any],
) -> None:
    model, processor = demo
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.dtype == torch.float32


def _styles(processor: Any) -> list[str]:
    """The styles whose prompts are made of words that the model knows."""
    unknown = processor.tokenizer.unk_token_id
    return [
        style
        for style, prompt in DEMO_PROMPTS.items()
        if unknown not in processor.tokenizer(prompt).input_ids
    ]


@pytest.mark.slow
def test_fresh_scenes_are_captioned(demo: tuple[Any, Any]) -> None:
    styles = _styles(demo[1])
    assert "caption" in styles
    for style in styles:
        accuracy = evaluate(*demo, evaluation_scenes(40, seed=7, prior=0.3), style)
        assert accuracy.content >= 0.93
        assert accuracy.captions >= 0.65
        assert accuracy.shape_pointing >= 0.5


def test_demo_image_is_captioned_right(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    with Image.open(demo_image()) as image:
        assert image.size == (224, 224)
        parts = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPT}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    answer = model.generate(**inputs)[0, inputs.input_ids.shape[1] :]
    assert processor.tokenizer.decode(answer, skip_special_tokens=True) == (
        "a striped red star is above a blue triangle and a purple heart on a light background ."
    )


def test_weights_take_16_bits_each() -> None:
    for name in DEMO_MODELS:
        raw = (demo_folder(name) / "model.safetensors").read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        header.pop("__metadata__", None)
        assert {entry["dtype"] for entry in header.values()} == {"F16"}
