"""The parts of the demo model: tokenizer, chat template, processor and model fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.scenes import sample_scene
from captum_mllm.demo.architecture import (
    VOCABULARY,
    build_model,
    build_processor,
    build_tokenizer,
    token_ids,
)
from captum_mllm.demo.train import save_demo
from captum_mllm.models.processors import load_processor


def test_captions_survive_the_tokenizer() -> None:
    tokenizer = build_tokenizer()
    for seed in range(20):
        spoken = caption(sample_scene(seed))
        ids = tokenizer(str(spoken)).input_ids
        assert ids == token_ids(spoken.words)
        assert tokenizer.decode(ids) == str(spoken)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Describe the image.", ["describe", "the", "image", "."]),
        ("A RED\n star", ["a", "red", "star"]),
        ("zebra, star!", ["<unk>", "<unk>", "star", "<unk>"]),
        ("<|im_start|>user", ["<|im_start|>", "user"]),
        ("", []),
    ],
)
def test_tokens_are_words_and_punctuation(text: str, tokens: list[str]) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == tokens


def test_vocabulary_has_no_token_twice_and_is_the_tokenizers() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(build_tokenizer())


def test_chat_template_takes_parts_and_plain_text() -> None:
    processor = build_processor()
    parts = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a star"}]
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image."
        "<|im_end|>\n<|im_start|>assistant\na star<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(224, 224, (14, 14)), (224, 448, (9, 19)), (16, 16, (4, 4))]
)
def test_processor_bounds_the_number_of_image_tokens(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    processor = build_processor()
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    inputs = processor(images=[picture], text=["<|image_pad|>"], return_tensors="pt")
    assert tuple(inputs.image_grid_thw[0, 1:].tolist()) == grid
    assert inputs.input_ids.shape[1] == grid[0] * grid[1]


def test_saved_model_loads_in_full_precision_and_answers_alike(tmp_path: Path) -> None:
    model = build_model(seed=3)
    save_demo(model, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = load_processor(tmp_path)
    assert loaded.dtype == torch.float32
    picture = np.full((64, 64, 3), 200, dtype=np.uint8)
    inputs = processor(images=[picture], text=["<|image_pad|> describe"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**inputs).logits, model(**inputs).logits, atol=1e-3, rtol=0
        )
    assert loaded.generate(**inputs).shape[1] <= inputs.input_ids.shape[1] + 32
