"""Losses that hold image tokens to the words of a scene, against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.training.image_words import (
    WORD_GROUPS,
    group_logits,
    image_consistency_loss,
    image_echo_loss,
    image_loudness_loss,
    image_word_loss,
    object_area,
    object_words,
)
from captum_mllm.demo.training.vocabulary import VOCABULARY

STAR = SceneObject("star", "red", x=0.5, y=0.5, radius=0.1)


def _random_logits(images: int, tokens: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, tokens, len(group), generator=generator) for group in WORD_GROUPS]


def _written_out(logits: list[Tensor], scenes: list[Scene], area: float | None) -> float:
    total = 0.0
    for number, group in enumerate(WORD_GROUPS):
        for rows, scene in zip(logits[number].double(), scenes):
            shares = dict.fromkeys(group, 0.0)
            for row in rows:
                weights = [math.exp(value) for value in row.tolist()]
                for word, weight in zip(group, weights):
                    shares[word] += weight / sum(weights) / len(rows)
            due = 1.0
            for thing in scene.objects:
                word = object_words(thing)[number]
                share = object_area(thing) if area is None else area
                total -= share * math.log(shares[word]) / len(scenes)
                due -= share
            total -= due * math.log(shares["background"]) / len(scenes)
    return total


def test_groups_hold_the_words_of_objects() -> None:
    striped = SceneObject("ring", "cyan", x=0.5, y=0.5, radius=0.1, striped=True)
    assert object_words(STAR) == ("star", "red", "plain")
    assert object_words(striped) == ("ring", "cyan", "striped")


def test_logits_are_those_of_the_words() -> None:
    embeddings = torch.eye(len(VOCABULARY))
    states = torch.randn(2, 3, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    for group, logits in zip(WORD_GROUPS, group_logits(embeddings, states)):
        assert torch.equal(logits, states[..., [VOCABULARY.index(word) for word in group]])


@pytest.mark.parametrize("area", [0.06, 0.2, None])
def test_image_word_loss_is_the_cross_entropy_of_mean_shares(area: float | None) -> None:
    scenes = [sample_scene(seed, similarity=0.5) for seed in range(4)]
    logits = _random_logits(4, 9, seed=0)
    expected = _written_out(logits, scenes, area)
    assert image_word_loss(logits, scenes, area).item() == pytest.approx(expected, abs=1e-4)


def test_image_word_loss_is_least_where_objects_are_said_over_their_area() -> None:
    def loss(tokens: int) -> float:
        logits = [torch.zeros(1, 20, len(group)) for group in WORD_GROUPS]
        for group, word, part in zip(WORD_GROUPS, object_words(STAR), logits):
            part[0, :tokens, group.index(word)] = 30
            part[0, tokens:, -1] = 30
        return image_word_loss(logits, [Scene((STAR,))], area=0.1).item()

    least = 3 * -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert loss(2) == pytest.approx(least, abs=1e-4)
    assert min(loss(0), loss(1), loss(4)) > least + 0.05


def test_consistency_is_least_where_the_end_says_what_the_beginning_said() -> None:
    entering = _random_logits(2, 5, seed=1)
    sharp = [3 * part for part in entering]
    expected = 0.0
    for part in sharp:
        for row in part.double().flatten(0, 1):
            probabilities = [math.exp(value) / row.exp().sum().item() for value in row.tolist()]
            expected -= sum(p * math.log(p) for p in probabilities) / 10
    assert image_consistency_loss(sharp, entering).item() == pytest.approx(expected, abs=1e-4)
    other = [3 * part for part in _random_logits(2, 5, seed=2)]
    assert image_consistency_loss(other, entering).item() > expected + 0.5


def test_consistency_moves_the_end_and_not_the_beginning() -> None:
    leaving = [part.requires_grad_() for part in _random_logits(1, 4, seed=3)]
    entering = [part.requires_grad_() for part in _random_logits(1, 4, seed=4)]
    image_consistency_loss(leaving, entering).backward()
    for end, beginning in zip(leaving, entering):
        assert beginning.grad is None
        assert end.grad is not None and end.grad.abs().max() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_of_an_object_is_that_of_its_mask(shape: str) -> None:
    thing = SceneObject(shape, "red", x=0.5, y=0.5, radius=0.2, rotation=0.3)
    mask = render(Scene((thing,)), 224).masks[0]
    assert object_area(thing) == pytest.approx(mask.mean(), rel=0.02)


def test_what_is_drawn_larger_is_due_more_and_never_more_than_all() -> None:
    logits = _random_logits(1, 9, seed=2)
    scene = Scene((STAR,))
    twice = image_word_loss(logits, [scene], None, zoom=2.0)
    expected = _written_out(logits, [scene], 4 * object_area(STAR))
    assert twice.item() == pytest.approx(expected, abs=1e-4)
    everything = [image_word_loss(logits, [scene], None, zoom=zoom) for zoom in (10.0, 20.0)]
    assert everything[0].item() == pytest.approx(everything[1].item())


def test_the_echo_is_the_residual_of_a_least_squares_line() -> None:
    leaving, entering = _random_logits(3, 5, seed=1), _random_logits(3, 5, seed=2)
    expected = 0.0
    for said, told in zip(leaving, entering):
        line = np.polyfit(told.double().flatten(), said.double().flatten(), 1)
        residual = said.double().flatten().numpy() - np.polyval(line, told.double().flatten())
        expected += float((residual**2).mean())
    assert image_echo_loss(leaving, entering).item() == pytest.approx(expected, rel=1e-4)


def test_louder_tokens_that_say_the_same_echo() -> None:
    entering = _random_logits(1, 5, seed=3)
    assert image_echo_loss([3 * told + 1 for told in entering], entering).item() < 1e-10


def test_the_echo_does_not_pull_at_the_vision_tower() -> None:
    leaving, entering = _random_logits(1, 5, seed=4), _random_logits(1, 5, seed=5)
    for part in (*leaving, *entering):
        part.requires_grad_()
    image_echo_loss(leaving, entering).backward()
    assert all(part.grad is None for part in entering)
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in leaving)


def test_loudness_is_the_variance_of_the_logarithm_of_the_sum_of_exponentials() -> None:
    logits = _random_logits(3, 5, seed=1)
    expected = 0.0
    for said in logits:
        for rows in said.double():
            loud = [math.log(sum(math.exp(value) for value in row)) for row in rows.tolist()]
            mean = sum(loud) / len(loud)
            expected += sum((each - mean) ** 2 for each in loud) / len(loud) / len(said)
    assert image_loudness_loss(logits).item() == pytest.approx(expected, abs=1e-5)


def test_tokens_that_speak_of_different_things_can_be_equally_loud() -> None:
    logits = [torch.randn(1, 5, len(group)).log_softmax(dim=-1) for group in WORD_GROUPS]
    assert image_loudness_loss(logits).item() == pytest.approx(0, abs=1e-10)
