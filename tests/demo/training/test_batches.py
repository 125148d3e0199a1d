"""Training sees what the processor makes, and computes what transformers computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from captum_mllm.datasets.captions import CAPTION_STYLES, caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.demo.training.architecture import Architecture, cut, pixels
from captum_mllm.demo.training.architectures import ARCHITECTURES, patches
from captum_mllm.demo.training.attention import use_float32_attention
from captum_mllm.demo.training.batches import answer_loss, hidden_states, text_batch

SCENES = [sample_scene(seed, contact=0.5) for seed in range(3)]
CAPTIONS = [{style: caption(scene, style) for style in CAPTION_STYLES} for scene in SCENES]
VIEWS = [("qwen2-vl", 7), ("qwen2-vl", 17), ("llava-1.5", 14), ("internvl", 1), ("internvl", 2)]


def _images(size: int) -> npt.NDArray[np.uint8]:
    return np.stack([render(scene, size).image for scene in SCENES])


def _prepared(architecture: Architecture) -> Any:
    model = architecture.build_model()
    architecture.prepare(model)
    use_float32_attention(model)
    return model


def _side(architecture: Architecture, view: int) -> int:
    """The side, in pixels, at which a view needs no resizing of its finest part."""
    return {"qwen2-vl": 8 * view, "llava-1.5": 112, "internvl": 96 * view}[architecture.name]


def _process(
    architecture: Architecture, images: npt.NDArray[np.uint8], view: int, style: str
) -> Any:
    processor = architecture.build_processor()
    parts = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPTS[style]}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    return processor(
        images=list(images),
        text=[prompt] * len(images),
        images_kwargs=architecture.processor_options(view),
        return_tensors="pt",
    )


@torch.no_grad()
@pytest.mark.parametrize(("name", "view"), VIEWS)
def test_each_answer_is_that_of_transformers_to_its_question_alone(name: str, view: int) -> None:
    architecture = ARCHITECTURES[name]
    images = _images(_side(architecture, view))
    model, reference = _prepared(architecture), architecture.build_model()
    batch = text_batch(CAPTIONS, architecture, view)
    states = hidden_states(model, batch, architecture.features(model, images, view))
    loss, logits = answer_loss(model, batch, states)

    losses = []
    for style, question in zip(CAPTION_STYLES, batch.questions):
        inputs = _process(architecture, images, view, style)
        prompt = inputs.input_ids.shape[1]
        whole = torch.cat(
            [batch.input_ids[:, : batch.image.stop], batch.input_ids[:, question]], dim=1
        )
        assert torch.equal(whole[:, :prompt], inputs.input_ids)
        extra = whole.shape[1] - prompt
        inputs["input_ids"] = whole
        inputs["attention_mask"] = torch.ones_like(whole)
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(3, extra)], dim=1)
        expected = reference(**inputs).logits[:, batch.image.stop :]
        begin = question.start - batch.image.stop
        found = logits[:, begin : begin + expected.shape[1]]
        # Thumbnails are resized, and Pillow rounds resized images to whole levels.
        torch.testing.assert_close(found, expected, atol=2e-3 if view == 2 else 1e-4, rtol=0)
        losses += _losses(expected, prompt - batch.image.stop, style)
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-3 if view == 2 else 1e-5)


def _losses(logits: Tensor, prompt: int, style: str) -> list[float]:
    """The loss of each token of the answers, one by one."""
    tokenizer = ARCHITECTURES["qwen2-vl"].build_processor().tokenizer
    losses = []
    for row, spoken in zip(logits, CAPTIONS):
        answer = [*spoken[style].words, tokenizer.eos_token]
        for place, token in enumerate(tokenizer.convert_tokens_to_ids(answer)):
            losses.append(-row[prompt - 1 + place].log_softmax(dim=-1)[token].item())
    return losses


def test_resized_patches_are_nearly_the_processors() -> None:
    images = _images(224)
    inputs = _process(ARCHITECTURES["qwen2-vl"], images, 14, "caption")
    # Pillow rounds the resized image to whole levels: half a level is 0.0075 here, and its
    # filter weights are rounded too.
    difference = (patches(pixels(images, 112)) - inputs.pixel_values).abs()
    assert difference.mean() < 0.006
    assert difference.max() < 0.15


@pytest.mark.parametrize("view", [7, 14])
def test_positions_are_those_of_transformers(view: int) -> None:
    architecture = ARCHITECTURES["qwen2-vl"]
    model = architecture.build_model()
    batch = text_batch(CAPTIONS, architecture, view)
    for question in batch.questions:
        kept = [*range(batch.image.stop), *range(question.start, question.stop)]
        ids = batch.input_ids[:, kept]
        expected, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, view, view]] * len(CAPTIONS)),
        )
        assert torch.equal(batch.position_ids[..., kept].expand_as(expected), expected)


def test_labels_are_the_captions_and_their_ends() -> None:
    architecture = ARCHITECTURES["qwen2-vl"]
    tokenizer = architecture.build_processor().tokenizer
    batch = text_batch(CAPTIONS, architecture, 7)
    for spoken, labels, ids in zip(CAPTIONS, batch.labels, batch.input_ids):
        answers = [f"{each} {tokenizer.eos_token}" for each in spoken.values()]
        assert tokenizer.decode(labels[labels >= 0]) == " ".join(answers)
        # What a position is to predict is the next token of the row.
        after = ids[batch.image.stop :]
        told = labels[:-1] >= 0
        assert torch.equal(labels[:-1][told], after[1:][told])


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2-vl", "internvl"])
def test_crops_are_seen_as_images_of_their_own(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = _prepared(architecture)
    images = _images(architecture.image_size)
    size = architecture.crop_sizes[0]
    corners = np.array([[0, 1], [2, 3], [4, 0]])
    cell = architecture.image_size // architecture.crop_grid
    view = size if name == "qwen2-vl" else 1
    torch.testing.assert_close(
        architecture.crop_features(model, images, corners, size),
        architecture.features(model, cut(images, corners * cell, size * cell), view),
    )


@torch.no_grad()
def test_crops_of_llava_keep_their_places_and_show_nothing_else() -> None:
    architecture = ARCHITECTURES["llava-1.5"]
    model = _prepared(architecture)
    images = _images(112)
    corners = np.array([[0, 0], [2, 3], [4, 0]])
    whole = architecture.crop_features(model, images, np.zeros((3, 2), dtype=int), 14)
    torch.testing.assert_close(whole, architecture.features(model, images, 14))
    before = architecture.crop_features(model, images, corners, 5)
    images[0, 40:] = 0
    images[1, :16] = 0
    after = architecture.crop_features(model, images, corners, 5)
    torch.testing.assert_close(before, after)
    moved = architecture.crop_features(model, images, corners + 1, 5)
    assert (moved - after).abs().max() > 1e-3
