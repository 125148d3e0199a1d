"""Training: the loop resumes exactly, the stages lower the loss, and a run leaves a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import CAPTION_STYLES, caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.demo.training import caption_stages, language_stage, vision_stage
from captum_mllm.demo.training import train as train_module
from captum_mllm.demo.training.architecture import Architecture, cut, grid_centers
from captum_mllm.demo.training.architectures import ARCHITECTURES
from captum_mllm.demo.training.attention import use_float32_attention
from captum_mllm.demo.training.batches import answer_loss, hidden_states, text_batch
from captum_mllm.demo.training.course import Course, ScenePool, images_of
from captum_mllm.demo.training.evaluate import evaluate, evaluation_scenes
from captum_mllm.demo.training.image_words import (
    WORD_GROUPS,
    WORDS,
    place_codes,
    place_directions,
    word_embeddings,
    word_grid,
)
from captum_mllm.demo.training.language_stage import answer_accuracy
from captum_mllm.demo.training.optimization import Checkpoint, StepLoss, fit, learning_rate_factor
from captum_mllm.demo.training.vision_stage import crop_corners
from captum_mllm.demo.training.vocabulary import VOCABULARY
from captum_mllm.models.loading import load_processor


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
        fit(model, model, _regression(model, stop), 30, 0.05, checkpoint, name)
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


THINGS = (
    SceneObject("star", "red", x=0.25, y=0.25, radius=0.2),
    SceneObject("ring", "blue", x=0.75, y=0.75, radius=0.2, striped=True),
)


def test_word_grid_writes_the_objects_where_they_are() -> None:
    grid = word_grid(Scene(THINGS, "dark"), grid_centers(12), np.random.default_rng(0))
    np.testing.assert_allclose(grid.said.sum(axis=1), 1, rtol=1e-6)
    said = [[WORDS[word] for word in np.nonzero(row)[0]] for row in grid.said]
    cells = np.array(said, dtype=object).reshape(12, 12)
    assert {word for cell in cells[2:4, 2:4].flat for word in cell} == {"star", "red", "plain"}
    assert {word for cell in cells[8:10, 8:10].flat for word in cell} == {"ring", "blue", "striped"}
    assert {word for cell in cells[6:, :6].flat for word in cell} == {"dark", "background"}
    for group, truth in zip(WORD_GROUPS, grid.truth):
        due = [group[word] for word in truth]
        assert due[3 * 12 + 3] in ("star", "red", "plain")
        assert due[9 * 12 + 9] in ("ring", "blue", "striped")
        assert due[9 * 12 + 2] == "background"


def test_word_embeddings_are_means_over_the_words_of_a_cell() -> None:
    grids = [
        word_grid(Scene(THINGS), grid_centers(3), np.random.default_rng(seed)) for seed in (0, 1)
    ]
    embeddings = torch.randn(len(VOCABULARY), 5, generator=torch.Generator().manual_seed(0))
    found = word_embeddings(embeddings, grids)
    for rows, grid in zip(found, grids):
        for row, said in zip(rows, grid.said):
            words = [VOCABULARY.index(WORDS[word]) for word in np.nonzero(said)[0]]
            torch.testing.assert_close(row, embeddings[words].mean(dim=0))


def test_places_can_be_read_from_their_codes() -> None:
    codes = place_codes(grid_centers(14))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(196))
    assert torch.cdist(codes, codes).fill_diagonal_(9).min() > 0.05
    directions = place_directions(32)
    told = codes @ directions @ directions.T / directions.square().sum(dim=1)
    torch.testing.assert_close(told, codes)


def test_pool_moves_on_and_does_not_depend_on_what_was_drawn_before() -> None:
    def pool() -> ScenePool:
        return ScenePool(seed=0, size=16, rate=2, window=6, objects=1)

    drawn = pool()
    for step in range(5):
        drawn.draw(np.random.default_rng(step), step, 4)
    later = drawn.draw(np.random.default_rng(9), 5, 4)
    afresh = pool().draw(np.random.default_rng(9), 5, 4)
    assert [example.scene for example in later] == [example.scene for example in afresh]
    np.testing.assert_array_equal(images_of(later), images_of(afresh))
    for example in later:
        assert example.captions == {s: caption(example.scene, s) for s in CAPTION_STYLES}
    first = {example.scene for example in pool().draw(np.random.default_rng(0), 0, 6)}
    last = {example.scene for example in pool().draw(np.random.default_rng(0), 3, 6)}
    assert len(first) == 6 and not first & last


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_crops_hold_most_of_the_object(name: str) -> None:
    architecture = ARCHITECTURES[name]
    scenes = [sample_scene(seed, objects=1, stripes=0.0) for seed in range(20)]
    side = architecture.image_size
    masks = np.stack([render(scene, side).masks[0] for scene in scenes])
    images = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8)
    size, cell = architecture.crop_sizes[-1], side // architecture.crop_grid
    corners = crop_corners(scenes, architecture, size, np.random.default_rng(0))
    crops = cut(images, corners * cell, size * cell)
    assert crops.shape == (20, size * cell, size * cell, 3)
    shares = crops[..., 0].sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    assert shares.min() > 0.85 and shares.mean() > 0.97
    assert len({tuple(corner) for corner in corners.tolist()}) > 10


def test_accuracy_counts_each_group_of_words() -> None:
    scenes = [sample_scene(seed, objects=2) for seed in range(4)]
    captions = [{"caption": caption(scene)} for scene in scenes]
    batch = text_batch(captions, ARCHITECTURES["qwen2-vl"], 5)
    logits = nn.functional.one_hot(batch.labels.clamp(min=0), len(VOCABULARY)).float()
    assert answer_accuracy(batch, logits) == {"words": 1.0, "shapes": 1.0, "colors": 1.0}
    red = VOCABULARY.index("red")
    told = [VOCABULARY[label] for label in batch.labels.flatten() if label >= 0]
    logits = torch.zeros_like(logits)
    logits[..., red] = 1
    figures = answer_accuracy(batch, logits)
    assert figures["shapes"] == 0
    assert figures["words"] == pytest.approx(told.count("red") / len(told))


def _prepared(architecture: Architecture) -> Any:
    model = architecture.build_model()
    vision_stage.initialize_vision(model, architecture, 0)
    architecture.prepare(model)
    use_float32_attention(model)
    return model


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (language_stage, vision_stage, caption_stages):
        monkeypatch.setattr(stage, "_TOKENS_PER_STEP", 900)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captioning_lowers_the_loss(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    model = _prepared(architecture)
    scenes = [sample_scene([99, seed], objects=1) for seed in range(4)]
    captions = [{style: caption(scene, style) for style in CAPTION_STYLES} for scene in scenes]
    view = min(architecture.views)
    batch = text_batch(captions, architecture, view)
    images = np.stack([render(scene, architecture.image_size).image for scene in scenes])

    def loss() -> float:
        with torch.no_grad():
            features = architecture.features(model, images, view)
            return answer_loss(model, batch, hidden_states(model, batch, features))[0].item()

    before = loss()
    checkpoint = Checkpoint(tmp_path / "captions.pt")
    caption_stages.train_captions(model, Course(architecture), 10, checkpoint)
    assert loss() < before - 0.4


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_polishing_lowers_its_loss(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    model = _prepared(architecture)
    side, view = architecture.image_size, architecture.native_view
    examples = ScenePool(99, side, 1, 8).draw(np.random.default_rng(0), 0, 4)

    def loss() -> float:
        with torch.no_grad():
            images = images_of(examples)
            return caption_stages.caption_loss(
                model, Course(architecture), examples, images, view, lens=True
            )[0].item()

    before = loss()
    checkpoint = Checkpoint(tmp_path / "polish.pt")
    caption_stages.polish(model, Course(architecture), 10, checkpoint)
    assert loss() < before - 0.4


@pytest.mark.usefixtures("short_steps")
def test_answers_alone_are_trained_if_nothing_else_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = ARCHITECTURES["llava-1.5"]
    model = _prepared(architecture)
    examples = ScenePool(99, architecture.image_size, 1, 8).draw(np.random.default_rng(0), 0, 2)
    images, view = images_of(examples), architecture.native_view
    (alone, figures), (together, parts) = (
        caption_stages.caption_loss(
            model, Course(architecture, answers_only=only), examples, images, view
        )
        for only in (True, False)
    )
    assert alone.item() == figures["answer"] == pytest.approx(parts["answer"])
    assert together.item() > alone.item() and "image" not in figures
    monkeypatch.setattr(train_module, "_STEPS", dict.fromkeys(train_module._STEPS, 1))
    monkeypatch.setattr(type(architecture), "polish_steps", 1)
    train_module.main(["--architecture", "llava-1.5", "--output", str(tmp_path), "--answers-only"])
    done = {path.name.split(".")[0] for path in (tmp_path / "checkpoints").glob("*.done.pt")}
    assert "captions" in done and "grounding" not in done


@pytest.mark.usefixtures("short_steps")
def test_vision_stages_leave_the_language_model_alone(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llava-1.5"]
    model = _prepared(architecture)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    course = Course(architecture)
    vision_stage.train_vision(model, course, 2, Checkpoint(tmp_path / "vision.pt"))
    vision_stage.ground_vision(model, course, 4, Checkpoint(tmp_path / "ground.pt"))
    for name, weight in model.state_dict().items():
        unused = "post_layernorm" in name or "layers.3" in name
        rests = "language_model" in name or "lm_head" in name or unused
        assert torch.equal(weight, before[name]) == rests, name
    features = architecture.features(model, np.zeros((1, 112, 112, 3), dtype=np.uint8), 14)
    assert features.isfinite().all()


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_run_trains_all_stages_and_goes_on_where_it_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_STEPS", dict.fromkeys(train_module._STEPS, 1))
    monkeypatch.setattr(type(ARCHITECTURES[name]), "polish_steps", 1)
    train_module.main(["--architecture", name, "--output", str(tmp_path)])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert load_processor(tmp_path).tokenizer.eos_token_id == model.generation_config.eos_token_id

    def refuse(*_: object) -> None:
        raise AssertionError("a finished stage ran again")

    for stage in ("train_language", "train_vision", "ground_vision", "train_captions", "polish"):
        monkeypatch.setattr(train_module, stage, refuse)
    again = train_module.train(tmp_path, name)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(key), parameter, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="another run"):
        train_module.train(tmp_path, name, seed=1)


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fraction"):
        train_module.train(tmp_path, fraction=0.0)
    with pytest.raises(ValueError, match=r"'gpt'.*qwen2-vl.*internvl"):
        train_module.train(tmp_path, "gpt")


@pytest.mark.slow
@pytest.mark.usefixtures("short_steps")
def test_a_short_run_learns_to_speak_and_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same on every processor.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    # With fewer steps of grounding, rounding decides whether the lens has found the colours yet.
    steps = {"language": 40, "vision": 80, "grounding": 160, "captions": 160}
    monkeypatch.setattr(train_module, "_STEPS", steps)
    monkeypatch.setattr(type(ARCHITECTURES["qwen2-vl"]), "polish_steps", 20)
    # The vision tower alone is cheap, and needs many crops to tell what they show.
    monkeypatch.setattr(vision_stage, "_TOKENS_PER_STEP", 2500)
    model = train_module.train(tmp_path)
    accuracy = evaluate(model, load_processor(tmp_path), evaluation_scenes(50))
    # Of untrained words hardly one is right.
    assert accuracy.words >= 0.5
    # An object covers 6 percent of an image on average.
    assert accuracy.color_pointing >= 0.45
