"""Training: the loop resumes exactly, the stages lower the loss, and a run leaves a whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.scenes import Scene, SceneObject, sample_scene
from captum_mllm.demo import caption_stage
from captum_mllm.demo import train as train_module
from captum_mllm.demo.architecture import VOCABULARY, build_model
from captum_mllm.demo.batches import (
    answer_loss,
    answer_states,
    image_features,
    patches,
    text_batch,
)
from captum_mllm.demo.fast_vision import use_fast_vision
from captum_mllm.demo.language_stage import answer_accuracy, word_grid
from captum_mllm.demo.optimization import Checkpoint, StepLoss, fit, learning_rate_factor
from captum_mllm.demo.pool import ScenePool
from captum_mllm.demo.vision_stage import crop_objects
from captum_mllm.models.processors import load_processor


def _regression(model: nn.Linear, stop: int) -> StepLoss:
    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean(), {}

    return step_loss


def test_interrupted_training_ends_where_uninterrupted_training_ends(tmp_path: Path) -> None:
    def run(name: str, stop: int) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        checkpoint = Checkpoint(tmp_path / name, seconds=0.0)
        fit(model, model.parameters(), _regression(model, stop), 30, 0.05, checkpoint, name)
        return model

    with pytest.raises(KeyboardInterrupt):
        run("interrupted", stop=17)
    resumed, whole = run("interrupted", stop=-1), run("whole", stop=-1)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert min(factors) > 0 and max(factors) <= 1
    assert int(np.argmax(factors)) == 99
    assert factors[-1] == pytest.approx(0.03, abs=1e-3)


def test_word_grid_writes_the_objects_where_they_are() -> None:
    things = (
        SceneObject("star", "red", x=0.25, y=0.25, radius=0.2),
        SceneObject("ring", "blue", x=0.75, y=0.75, radius=0.2, striped=True),
    )
    cells = word_grid(Scene(things, "dark"), 12, np.random.default_rng(0))
    words = np.array([VOCABULARY[cell] for cell in cells]).reshape(12, 12)
    assert set(words[2:4, 2:4].flat) == {"red", "star"}
    assert set(words[8:10, 8:10].flat) <= {"blue", "ring", "striped"}
    assert set(words[6:, :6].flat) == {"dark", "background"}


def test_pool_moves_on_and_does_not_depend_on_what_was_drawn_before() -> None:
    def pool() -> ScenePool:
        return ScenePool(seed=0, size=16, rate=2, window=6, objects=1)

    drawn = pool()
    for step in range(5):
        drawn.draw(np.random.default_rng(step), step, 4)
    later, pictures = drawn.draw(np.random.default_rng(9), 5, 4)
    afresh, same_pictures = pool().draw(np.random.default_rng(9), 5, 4)
    assert later == afresh
    np.testing.assert_array_equal(pictures, same_pictures)
    first, _ = pool().draw(np.random.default_rng(0), 0, 6)
    last, _ = pool().draw(np.random.default_rng(0), 3, 6)
    assert len(set(first)) == 6 and not set(first) & set(last)


def test_crops_hold_the_object() -> None:
    scenes = [sample_scene(seed, objects=1, stripes=0.0) for seed in range(12)]
    masks = np.stack([render(scene, 112).masks[0] for scene in scenes])
    pictures = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8)
    crops = crop_objects(scenes, pictures, 64, np.random.default_rng(0))
    assert crops.shape == (12, 64, 64, 3)
    np.testing.assert_array_equal(crops[..., 0].sum(axis=(1, 2)), masks.sum(axis=(1, 2)))


def test_accuracy_counts_each_group_of_words() -> None:
    batch = text_batch([caption(sample_scene(seed, objects=2)) for seed in range(4)], 5)
    logits = nn.functional.one_hot(batch.labels.clamp(min=0), len(VOCABULARY)).float()
    assert answer_accuracy(batch, logits) == {"words": 1.0, "shapes": 1.0, "colors": 1.0}
    red = VOCABULARY.index("red")
    colors = [VOCABULARY[label] for label in batch.labels.flatten() if label >= 0]
    logits = torch.zeros_like(logits)
    logits[..., red] = 1
    figures = answer_accuracy(batch, logits)
    assert figures["shapes"] == 0
    assert figures["words"] == pytest.approx(colors.count("red") / len(colors))


def test_captioning_lowers_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_stage, "_TOKENS_PER_STEP", 800)
    model = build_model()
    use_fast_vision(model)
    scenes = [sample_scene([99, seed], objects=1) for seed in range(8)]
    batch = text_batch([caption(scene) for scene in scenes], 7)
    pixel_values = patches(np.stack([render(scene, 112).image for scene in scenes]), 7)

    def loss() -> float:
        with torch.no_grad():
            return answer_loss(
                model, batch, answer_states(model, batch, image_features(model, pixel_values, 7))
            )[0].item()

    before = loss()
    caption_stage.train_captions(model, 0, 12, Checkpoint(tmp_path / "captions.pt"))
    assert loss() < before - 0.5


def test_run_trains_all_stages_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_STEPS", dict.fromkeys(train_module._STEPS, 1))
    train_module.main(["--output", str(tmp_path)])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert load_processor(tmp_path).tokenizer.eos_token_id == model.generation_config.eos_token_id

    def refuse(*_: object) -> None:
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(train_module, "train_language", refuse)
    monkeypatch.setattr(train_module, "train_vision", refuse)
    again = train_module.train(tmp_path)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="another run"):
        train_module.train(tmp_path, seed=1)
    with pytest.raises(ValueError, match="fraction"):
        train_module.train(tmp_path, fraction=0.0)
