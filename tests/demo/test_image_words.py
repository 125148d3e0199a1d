"""Losses that hold image tokens to the words of the caption, against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from captum_mllm.datasets.scenes import COLORS, Scene, SceneObject, sample_scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.architecture import VOCABULARY
from captum_mllm.demo.grounding_stage import WordShares, word_targets
from captum_mllm.demo.image_word_loss import (
    OBJECT_AREA,
    image_consistency_loss,
    image_word_loss,
)


def _written_out(logits: torch.Tensor, scenes: list[Scene]) -> float:
    total = 0.0
    for rows, scene in zip(logits.double(), scenes):
        for attribute, words in (("shape", list(SHAPES)), ("color", list(COLORS))):
            choices = [*words, "background"]
            shares = dict.fromkeys(choices, 0.0)
            for row in rows:
                weights = [math.exp(row[VOCABULARY.index(word)].item()) for word in choices]
                for word, weight in zip(choices, weights):
                    shares[word] += weight / sum(weights) / len(rows)
            due = 1.0
            for thing in scene.objects:
                total -= OBJECT_AREA * math.log(shares[getattr(thing, attribute)]) / len(scenes)
                due -= OBJECT_AREA
            total -= due * math.log(shares["background"]) / len(scenes)
    return total


def test_image_word_loss_is_the_cross_entropy_of_mean_shares() -> None:
    scenes = [sample_scene(seed, similarity=0.5) for seed in range(4)]
    logits = torch.randn(4, 9, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    expected = _written_out(logits, scenes)
    assert image_word_loss(logits, scenes).item() == pytest.approx(expected, abs=1e-4)


def test_image_word_loss_is_least_where_objects_are_said_once_each() -> None:
    scene = Scene((SceneObject("star", "red", x=0.5, y=0.5, radius=0.1),))

    def loss(said: dict[str, int]) -> float:
        logits = torch.zeros(1, 20, len(VOCABULARY))
        for word in ("star", "red"):
            logits[0, : said.get(word, 0), VOCABULARY.index(word)] = 30
            logits[0, said.get(word, 0) :, VOCABULARY.index("background")] += 15
        return image_word_loss(logits, [scene]).item()

    least = loss({"star": 1, "red": 1})
    assert least == pytest.approx(2 * -(0.05 * math.log(0.05) + 0.95 * math.log(0.95)), abs=1e-4)
    for other in ({}, {"star": 1}, {"star": 10, "red": 10}):
        assert loss(other) > least + 0.05


@pytest.mark.parametrize("window", [0.5, 1.0])
def test_word_targets_share_out_the_picture(window: float) -> None:
    scenes = [sample_scene(seed, objects=1 + seed % 3) for seed in range(12)]
    if window < 1:
        scenes = [scene for scene in scenes if len(scene.objects) == 1]
    targets = word_targets(scenes, window)
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(scenes)))
    for row, scene in zip(targets, scenes):
        background = row[-3:].sum().item()
        assert background == pytest.approx(1 - 0.05 / window**2 * len(scene.objects), abs=1e-5)


def test_word_shares_of_an_embedding_are_all_its_own() -> None:
    embeddings = 10 * torch.eye(len(VOCABULARY))
    features = embeddings[VOCABULARY.index("star")].expand(1, 4, -1)
    shares = WordShares(embeddings)(features)
    torch.testing.assert_close(shares.max(), torch.tensor(1.0))
    assert shares.argmax().item() == SHAPES.index("star")


def test_consistency_is_least_where_the_end_says_what_the_beginning_said() -> None:
    generator = torch.Generator().manual_seed(1)
    entering = torch.randn(2, 5, len(VOCABULARY), generator=generator)
    least = image_consistency_loss(3 * entering, entering).item()
    expected = 0.0
    for words in (list(SHAPES), list(COLORS)):
        choices = [VOCABULARY.index(word) for word in [*words, "background"]]
        for row in 3 * entering[..., choices].double().flatten(0, 1):
            probabilities = [math.exp(value) / row.exp().sum().item() for value in row.tolist()]
            expected -= sum(p * math.log(p) for p in probabilities) / 10
    assert least == pytest.approx(expected, abs=1e-4)
    other = torch.randn(2, 5, len(VOCABULARY), generator=generator)
    assert image_consistency_loss(3 * other, entering).item() > least + 0.5


def test_consistency_moves_the_end_and_not_the_beginning() -> None:
    entering, logits = (torch.randn(1, 4, len(VOCABULARY), requires_grad=True) for _ in range(2))
    image_consistency_loss(logits, entering).backward()
    assert entering.grad is None
    assert logits.grad is not None and logits.grad.abs().max() > 0
