r"""First stage: the language model alone learns to caption scenes given as grids of words.

In place of pictures it reads square grids of words: a cell that an object covers says one of the
words of the object's phrase, any other cell one of the background's. So it learns what an image
token will have to tell it, before there are any.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.scenes import COLORS, Scene, sample_scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.architecture import token_ids
from captum_mllm.demo.batches import TextBatch, answer_loss, answer_states, text_batch
from captum_mllm.demo.optimization import Checkpoint, fit, step_generator

_STAGE = "language"
_TOKENS_PER_STEP = 4800
_SMALL_GRIDS = (5, 6, 7)
_GRIDS = (7, 8, 9, 10, 11, 12, 14)
_GRID_ODDS = (0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05)
_GRID_LOSS = 0.3


def word_grid(scene: Scene, grid: int, generator: np.random.Generator) -> list[int]:
    r"""Write a scene as a square grid of words.

    Args:
        scene (Scene): The scene.
        grid (int): Cells on each side.
        generator (numpy.random.Generator): Decides which of its words a cell says.

    Returns:
        list[int]: Token ids of the cells, row by row.
    """
    centers = (np.arange(grid) + 0.5) / grid
    owner = np.full((grid, grid), len(scene.objects))
    for index, thing in enumerate(scene.objects):
        distance = np.hypot(centers[None, :] - thing.x, centers[:, None] - thing.y)
        covered = distance < thing.radius * generator.uniform(0.8, 1.1)
        owner[covered | (distance == distance.min())] = index
    phrases = [
        token_ids([thing.color, thing.shape] + ["striped"] * thing.striped)
        for thing in scene.objects
    ] + [token_ids([scene.background, "background"])]
    draws = generator.random(grid * grid)
    return [
        phrases[index][int(draw * len(phrases[index]))]
        for index, draw in zip(owner.flat, draws.tolist())
    ]


def answer_accuracy(batch: TextBatch, logits: Tensor) -> dict[str, float]:
    r"""Share of the answers' tokens, shape words and colour words whose logit is the highest.

    Args:
        batch (TextBatch): The batch.
        logits (Tensor): (B, T, V) logits of the answers.

    Returns:
        dict[str, float]: Shares in 0 to 1, under ``"words"``, ``"shapes"`` and ``"colors"``.
    """
    right = logits.argmax(dim=-1) == batch.labels
    groups = {
        "words": batch.labels >= 0,
        "shapes": torch.isin(batch.labels, torch.tensor(token_ids(SHAPES))),
        "colors": torch.isin(batch.labels, torch.tensor(token_ids(list(COLORS)))),
    }
    return {name: right[group].float().mean().item() for name, group in groups.items()}


def train_language(
    model: Qwen2VLForConditionalGeneration,
    seed: int,
    steps: int,
    prior: float,
    checkpoint: Checkpoint,
) -> None:
    r"""Train the language model on word grids, in place.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model; its vision tower rests.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, _STAGE, step)
        fraction = step / steps
        if fraction < 0.3:
            grid = int(generator.choice(_SMALL_GRIDS))
        else:
            grid = int(generator.choice(_GRIDS, p=_GRID_ODDS))
        most = 1 if fraction < 0.07 else 2 if fraction < 0.15 else None
        size = min(64, _TOKENS_PER_STEP // (grid**2 + 30))
        scenes = [
            sample_scene(generator, most and int(generator.integers(1, most + 1)), prior)
            for _ in range(size)
        ]
        batch = text_batch([caption(scene) for scene in scenes], grid)
        words = torch.tensor([word_grid(scene, grid, generator) for scene in scenes])
        batch.input_ids[:, batch.image] = words
        states = answer_states(model, batch)
        loss, logits = answer_loss(model, batch, states)
        cells = slice(batch.image.start - 1, batch.image.stop - 1)
        cell_loss = F.cross_entropy(model.lm_head(states[:, cells]).flatten(0, 1), words.flatten())
        return loss + _GRID_LOSS * cell_loss, {
            "answer": loss.item(),
            **answer_accuracy(batch, logits),
        }

    parameters = model.model.language_model.parameters()
    fit(model, parameters, step_loss, steps, 2e-3, checkpoint, _STAGE)
