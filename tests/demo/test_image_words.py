"""Losses that hold image tokens to the words of a scene, against sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.demo.image_words import (
    WORD_GROUPS,
    group_logits,
    image_consistency_loss,
    image_word_loss,
    object_words,
)
from captum_mllm.demo.vocabulary import VOCABULARY

STAR = SceneObject("star", "red", x=0.5, y=0.5, radius=0.1)


def _random_logits(pictures: int, tokens: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pictures, tokens, len(group), generator=generator) for group in WORD_GROUPS]


def _written_out(logits: list[Tensor], scenes: list[Scene], area: float) -> float:
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
                total -= area * math.log(shares[word]) / len(scenes)
                due -= area
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


@pytest.mark.parametrize("area", [0.06, 0.2])
def test_image_word_loss_is_the_cross_entropy_of_mean_shares(area: float) -> None:
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
