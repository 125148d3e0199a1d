"""The parts of the demo models: tokenizer, chat template, processor and model fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets.captions import CAPTION_STYLES, caption
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.demo.training.architecture import MAX_NEW_TOKENS, Architecture
from captum_mllm.demo.training.architectures import ARCHITECTURES
from captum_mllm.demo.training.train import save_demo
from captum_mllm.demo.training.vocabulary import (
    PROMPT_WORDS,
    VOCABULARY,
    build_tokenizer,
    token_ids,
)
from captum_mllm.models.loading import load_processor


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_captions_survive_the_tokenizer_and_fit_into_an_answer(style: str) -> None:
    tokenizer = build_tokenizer()
    for seed in range(20):
        spoken = caption(sample_scene(seed, contact=0.5), style)
        ids = tokenizer(str(spoken)).input_ids
        assert ids == token_ids(spoken.words)
        assert tokenizer.decode(ids) == str(spoken)
        assert len(ids) < MAX_NEW_TOKENS


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


@pytest.mark.parametrize("style", CAPTION_STYLES)
def test_prompts_are_written_in_words_of_the_vocabulary(style: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer(DEMO_PROMPTS[style]).input_ids == token_ids(PROMPT_WORDS[style])


def test_vocabulary_has_no_token_twice_and_is_the_tokenizers() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(build_tokenizer())


def test_chat_template_takes_parts_and_plain_text() -> None:
    processor = ARCHITECTURES["qwen2-vl"].build_processor()
    parts = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a star"}]
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image."
        "<|im_end|>\n<|im_start|>assistant\na star<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(224, 224, (14, 14)), (224, 448, (9, 19)), (16, 16, (4, 4))]
)
def test_processor_of_qwen2_vl_bounds_the_number_of_image_tokens(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    processor = ARCHITECTURES["qwen2-vl"].build_processor()
    image = np.zeros((height, width, 3), dtype=np.uint8)
    inputs = processor(images=[image], text=["<|image_pad|>"], return_tensors="pt")
    assert tuple(inputs.image_grid_thw[0, 1:].tolist()) == grid
    assert inputs.input_ids.shape[1] == grid[0] * grid[1]


def test_native_view_is_what_the_processor_does_by_itself(architecture: Architecture) -> None:
    processor = architecture.build_processor()
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    inputs = processor(images=[image], text=["<|image_pad|>"], return_tensors="pt")
    tokens = (inputs.input_ids == token_ids(["<|image_pad|>"])[0]).sum()
    assert tokens == len(architecture.token_centers(architecture.native_view))
    assert architecture.scales[1.0] == architecture.native_view


def test_token_centers_are_those_of_the_layout(architecture: Architecture) -> None:
    mllm = MLLM(architecture.build_model(), architecture.build_processor())
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    _, query = mllm.prepare(ImageTextInput(image, "Describe the image."), target="a star")
    (layout,) = mllm.states(image, query).layouts
    centers = [
        (
            (top + (row + 0.5) / piece.rows * (bottom - top)) / 224,
            (left + (column + 0.5) / piece.columns * (right - left)) / 224,
        )
        for piece in layout.pieces
        for left, top, right, bottom in [piece.box]
        for row in range(piece.rows)
        for column in range(piece.columns)
    ]
    np.testing.assert_allclose(architecture.token_centers(architecture.native_view), centers)


def test_models_take_at_most_2_million_parameters(architecture: Architecture) -> None:
    model = architecture.build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_saved_model_loads_in_full_precision_and_answers_alike(
    architecture: Architecture, tmp_path: Path
) -> None:
    model = architecture.build_model(seed=3)
    save_demo(model, architecture, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = load_processor(tmp_path)
    assert loaded.dtype == torch.float32
    image = np.full((64, 64, 3), 200, dtype=np.uint8)
    inputs = processor(images=[image], text=["<|image_pad|> describe"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**inputs).logits, model(**inputs).logits, atol=1e-3, rtol=0
        )
    answer = loaded.generate(**inputs)
    assert answer.shape[1] <= inputs.input_ids.shape[1] + MAX_NEW_TOKENS
