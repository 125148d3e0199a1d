"""Training sees what the processor makes, and computes what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.scenes import sample_scene
from captum_mllm.demo.architecture import build_model, build_processor
from captum_mllm.demo.batches import (
    answer_loss,
    answer_states,
    image_features,
    patches,
    text_batch,
)
from captum_mllm.demo.fast_vision import use_fast_vision

SCENES = [sample_scene(seed) for seed in range(3)]
CAPTIONS = [caption(scene) for scene in SCENES]
GRIDS = (7, 14, 17)


def _pictures(size: int) -> np.ndarray:
    return np.stack([render(scene, size).image for scene in SCENES])


@pytest.mark.parametrize("grid", GRIDS)
def test_prompt_and_patches_are_the_processors(grid: int) -> None:
    processor = build_processor()
    pictures = _pictures(2 * 112)
    parts = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(
        images=list(pictures),
        text=[prompt] * len(pictures),
        images_kwargs={"size": {"shortest_edge": 64, "longest_edge": (8 * grid) ** 2}},
        return_tensors="pt",
    )
    batch = text_batch(CAPTIONS, grid)
    prompt_length = inputs.input_ids.shape[1]
    assert batch.predicting.start == prompt_length - 1
    assert torch.equal(batch.input_ids[:, :prompt_length], inputs.input_ids)
    assert torch.equal(
        inputs.input_ids[0, batch.image], torch.full((grid**2,), processor.image_token_id)
    )
    # Pillow rounds the resized picture to whole levels: half a level is 0.0075 here, and its
    # filter weights are rounded too.
    difference = (patches(pictures, grid) - inputs.pixel_values).abs()
    assert difference.mean() < 0.006
    assert difference.max() < 0.15


def test_patches_without_resizing_are_the_processors_to_the_last_digit() -> None:
    pictures = _pictures(80)
    inputs = build_processor().image_processor(images=list(pictures), return_tensors="pt")
    torch.testing.assert_close(patches(pictures, 10), inputs.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_are_those_of_transformers(grid: int) -> None:
    model = build_model()
    batch = text_batch(CAPTIONS, grid)
    expected, _ = model.model.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=(batch.input_ids == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, grid, grid]] * len(CAPTIONS)),
    )
    assert torch.equal(batch.position_ids, expected)


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
def test_fast_forward_pass_gives_the_logits_and_the_loss_of_transformers(grid: int) -> None:
    model = build_model()
    batch = text_batch(CAPTIONS, grid)
    pixel_values = patches(_pictures(112), grid)
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=pixel_values,
        image_grid_thw=torch.tensor([[1, grid, grid]] * len(CAPTIONS)),
        mm_token_type_ids=(batch.input_ids == model.config.image_token_id).int(),
    ).logits
    expected = logits[:, batch.predicting]
    losses = [
        -row.log_softmax(dim=-1)[label].item()
        for rows, labels in zip(expected, batch.labels)
        for row, label in zip(rows, labels)
        if label >= 0
    ]

    use_fast_vision(model)
    loss, fast = answer_loss(
        model, batch, answer_states(model, batch, image_features(model, pixel_values, grid))
    )
    torch.testing.assert_close(fast, expected, atol=1e-4, rtol=0)
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_labels_are_the_captions_and_their_end() -> None:
    tokenizer = build_processor().tokenizer
    for spoken, labels in zip(CAPTIONS, text_batch(CAPTIONS, 7).labels):
        assert tokenizer.decode(labels[labels >= 0]) == f"{spoken} {tokenizer.eos_token}"
