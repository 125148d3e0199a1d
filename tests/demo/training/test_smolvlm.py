"""The training of demo/smolvlm, with a tiny random language model of the same class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_mllm.datasets import sample_scene
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.demo.language_model import (
    ADAPTER_FILE,
    VARIABLE,
    load_language_model,
    load_tokenizer,
)
from captum_mllm.demo.training.architecture import pixels
from captum_mllm.demo.training.smolvlm import start, train
from captum_mllm.demo.training.smolvlm.architecture import (
    GRID,
    IMAGE,
    LORA_SCALE,
    SIDE,
    LoRA,
    build_model,
    build_processor,
    image_features,
    with_image_token,
)
from captum_mllm.demo.training.smolvlm.evaluate import content, evaluate, table, yes_and_no
from captum_mllm.demo.training.smolvlm.export import export
from captum_mllm.demo.training.smolvlm.texts import IGNORED, Texts, pack, sequence
from captum_mllm.demo.training.smolvlm.train import (
    Settings,
    Trainer,
    adapter_state,
    draw_scenes,
    learning_rate,
    main,
)
from captum_mllm.models import MLLM, ImageTextInput
from tests.demo.tiny_language_model import save_tiny_language_model

SMALL = Settings(steps=4, decay=2, batch=2, budget=160, rank=2)


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "language_model"
    save_tiny_language_model(folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(start, "SCENES", 16)
    monkeypatch.setattr(train, "ANSWERS_OF", 20)
    return folder


def _untrained() -> tuple[Any, Any]:
    tokenizer = with_image_token(load_tokenizer())
    torch.manual_seed(0)
    model = build_model(load_language_model(), tokenizer.convert_tokens_to_ids(IMAGE))
    return model, tokenizer


def _trainer(folder: Path, settings: Settings = SMALL) -> Trainer:
    model, tokenizer = _untrained()
    return Trainer(settings, folder, model, Texts(tokenizer))


def test_a_change_of_low_rank_is_added_to_a_fixed_map() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(5, 6, bias=False)
    change = LoRA(base, rank=2)
    torch.nn.init.normal_(change.B)
    x = torch.randn(3, 4, 5)
    expected = x @ (base.weight + LORA_SCALE * change.B @ change.A).T
    torch.testing.assert_close(change(x), expected)


def test_packed_texts_get_what_each_gets_by_itself(language_model: Path) -> None:
    model, tokenizer = _untrained()
    texts, processor = Texts(tokenizer), build_processor(tokenizer)
    generator = np.random.default_rng(0)
    scenes, images = draw_scenes(generator, 2)
    rows = [texts.of_scene(scene, generator, 250) for scene in scenes]
    batch = pack(rows, texts.end)
    with torch.no_grad():
        features = image_features(model, pixels(images, SIDE))
        cells = torch.arange(GRID**2).expand(2, -1)
        packed = sequence(model, texts, features, cells, batch)
    assert min(map(len, rows)) >= 3
    for number, row in enumerate(rows):
        at = GRID**2
        for asked, said in row:
            question = tokenizer.decode(asked).removeprefix("\n").split("<|im_end|>")[0]
            content = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            image = Image.fromarray(images[number])
            inputs = processor(images=[image], text=[prompt], return_tensors="pt")
            ids = torch.cat([inputs.input_ids, torch.tensor([said])], dim=1)
            with torch.no_grad():
                alone = model.model(
                    input_ids=ids,
                    pixel_values=inputs.pixel_values,
                    attention_mask=torch.ones_like(ids),
                ).last_hidden_state[0]
            length = len(asked) + len(said)
            found = packed[number, at : at + length]
            torch.testing.assert_close(found, alone[-length:], rtol=1e-4, atol=1e-4)
            at += length


def test_labels_are_the_answers(language_model: Path) -> None:
    texts = Texts(with_image_token(load_tokenizer()))
    first = texts.exchange("What colour is the star?", "Red.")
    second = texts.exchange("Is there a heart?", "No.")
    batch = pack([[first, second], [first]], texts.end)
    told = [row[row != IGNORED].tolist() for row in batch.labels]
    assert told == [first[1] + second[1], first[1]]
    before = batch.ids[0, : len(first[0]) + len(first[1])].tolist()
    assert before == first[0] + first[1]
    # A label stands one place before its token.
    position = int((batch.labels[0] != IGNORED).nonzero()[0])
    assert batch.ids[0, position + 1] == batch.labels[0, position]


def test_texts_fit_into_their_budget(language_model: Path) -> None:
    texts = Texts(with_image_token(load_tokenizer()))
    for seed in range(10):
        generator = np.random.default_rng(seed)
        row = texts.of_scene(sample_scene(generator), generator, 200)
        assert 100 < sum(len(asked) + len(said) for asked, said in row) <= 200


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=100, decay=20)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19:81] == [1.0] * 62
    assert rates[90] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.05)
    # How long the plateau is makes no difference before it ends.
    longer = Settings(steps=200, decay=20)
    assert [learning_rate(step, longer) for step in range(80)] == rates[:80]


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    language_model: Path, tmp_path: Path
) -> None:
    whole = _trainer(tmp_path / "whole")
    whole.run()
    first = _trainer(tmp_path / "parts")
    first.train_step()
    first.train_step()
    first.save()
    second = _trainer(tmp_path / "parts")
    second.run()
    assert second.step == whole.step == SMALL.steps
    expected, found = adapter_state(whole.model), adapter_state(second.model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_start_from_nothing_has_weights_of_its_own_and_is_as_loud(
    language_model: Path, tmp_path: Path
) -> None:
    words = _trainer(tmp_path / "words").model
    nothing = _trainer(tmp_path / "nothing", SMALL._replace(start="nothing")).model
    images = pixels(draw_scenes(np.random.default_rng(0), 2)[1], SIDE)
    with torch.no_grad():
        said, unsaid = image_features(words, images), image_features(nothing, images)
    norms = said.norm(dim=-1).mean() / unsaid.norm(dim=-1).mean()
    assert 0.5 < norms < 2
    ours, theirs = adapter_state(words), adapter_state(nothing)
    matrices = [
        name for name, value in ours.items() if value.ndim > 1 and not name.endswith((".A", ".B"))
    ]
    assert len(matrices) > 20
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)
    again = _trainer(tmp_path / "again", SMALL._replace(start="nothing")).model
    assert all(torch.equal(value, theirs[name]) for name, value in adapter_state(again).items())


def test_a_run_with_other_settings_does_not_go_on(language_model: Path, tmp_path: Path) -> None:
    first = _trainer(tmp_path / "run")
    first.save()
    other = _trainer(tmp_path / "run", SMALL._replace(seed=1))
    with pytest.raises(ValueError, match="of a run with other settings"):
        other.resume()
    _trainer(tmp_path / "run", SMALL._replace(steps=9, decay=3)).resume()


def test_training_leaves_the_language_model_as_it_was(language_model: Path, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "run")
    fixed = {
        name: value.clone()
        for name, value in trainer.model.state_dict().items()
        if name not in adapter_state(trainer.model)
    }
    begun = adapter_state(trainer.model)
    trainer.run()
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in fixed.items())
    moved = [name for name, value in begun.items() if not torch.equal(state[name], value)]
    for part in ("q_proj.A", "down_proj.B", "multi_modal_projector", "patch_embedding"):
        assert any(part in name for name in moved), part


def test_what_is_shipped_says_what_was_trained(language_model: Path, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "run")
    trainer.run()
    model, tokenizer = trainer.model.eval(), trainer.texts.tokenizer
    folder = tmp_path / "shipped"
    export(adapter_state(model), load_language_model().config, tokenizer, folder)
    mllm = MLLM.from_pretrained(folder)
    loaded, processor = mllm.model, mllm.processor
    assert not any("tokenizer" in path.name for path in folder.iterdir())
    image = Image.fromarray(draw_scenes(np.random.default_rng(1), 1)[1][0])
    content = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPTS["caption"]}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    with torch.no_grad():
        expected, found = model(**inputs).logits, loaded(**inputs).logits
    # 16 bits on disk.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.std()))
    assert {name for name, _ in loaded.named_parameters()} == {
        name for name, _ in _untrained()[0].named_parameters()
    }
    result = mllm.prepare(
        ImageTextInput(image, "Is there a heart?"), target="No, there is no heart."
    )
    assert len(result[1].answer_ids) > 3
    again = _trainer(tmp_path / "again", SMALL._replace(start=str(folder / ADAPTER_FILE)))
    started = adapter_state(again.model)
    for name, value in adapter_state(model).items():
        torch.testing.assert_close(started[name], value, rtol=1e-3, atol=1e-4)


def test_measures_count_what_they_say(language_model: Path, tmp_path: Path) -> None:
    model, tokenizer = _untrained()
    processor = build_processor(tokenizer)
    scenes = [sample_scene(seed) for seed in range(3)]
    with torch.no_grad():
        counts = evaluate(model, processor, scenes)
    assert len(counts["caption", "answers"]) == len(counts["Yes", "first"]) == 3
    objects = sum(len(scene.objects) for scene in scenes)
    for lens in ("lens", "centred lens"):
        assert len(counts[lens, "shape"]) == len(counts[lens, "color"]) == objects
    # Every object of a caption is named with its shape and its colour, of one token or more.
    assert len(counts["caption", "shape"]) >= objects
    assert "| caption | " in table(counts)
    texts = Texts(tokenizer)
    answer = yes_and_no(scenes[0], 0)["No"].answer
    _, said = texts.exchange("?", str(answer))
    for group in ("shape", "color"):
        assert len(content(texts, said, answer, group)) == len(said)


@pytest.mark.slow
def test_two_minutes_of_the_script_learn_to_answer(language_model: Path, tmp_path: Path) -> None:
    main(["--output", str(tmp_path / "run"), "--steps", "60", "--decay", "20", "--threads", "1"])
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    losses = [float(line.split(" loss ")[1].split()[0]) for line in lines]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.7 * losses[0]
