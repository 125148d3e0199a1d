r"""First stage: the language model alone learns to caption scenes given as grids of words.

So it learns what an image token will have to tell it, before there are any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.datasets.captions import CAPTION_STYLES, caption
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import COLORS
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.training.batches import TextBatch, answer_loss, hidden_states, text_batch
from captum_mllm.demo.training.course import Course
from captum_mllm.demo.training.image_words import (
    group_logits,
    place_codes,
    place_directions,
    word_embeddings,
    word_grid,
)
from captum_mllm.demo.training.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.training.vocabulary import token_ids

_STAGE = "language"
_TOKENS_PER_STEP = 3500
_TEXT_TOKENS = 120
_CELL_LOSS = 0.2


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


def train_language(model: Any, course: Course, steps: int, checkpoint: Checkpoint) -> None:
    r"""Train the language model on word grids, in place.

    Args:
        model (transformers.PreTrainedModel): The model; its vision tower rests.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    directions = place_directions(model.config.get_text_config().hidden_size)
    architecture = course.architecture

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(course.seed, _STAGE, step)
        fraction = step / steps
        view = architecture.draw_view(generator, all_views=False)
        centers, places = architecture.token_centers(view), architecture.token_places(view)
        most = 1 if fraction < 0.05 else 2 if fraction < 0.12 else None
        size = min(48, _TOKENS_PER_STEP // (len(centers) + _TEXT_TOKENS))
        scenes = [
            sample_scene(
                generator,
                most and int(generator.integers(1, most + 1)),
                prior=course.prior,
                contact=course.contact,
            )
            for _ in range(size)
        ]
        captions = [{s: caption(scene, s) for s in CAPTION_STYLES} for scene in scenes]
        batch = text_batch(captions, architecture, view)
        grids = [word_grid(scene, centers, generator) for scene in scenes]
        cells = word_embeddings(model.get_input_embeddings().weight, grids)
        if places is not None:
            cells = cells + place_codes(places) @ directions
        states = hidden_states(model, batch, cells)
        loss, logits = answer_loss(model, batch, states)
        said = group_logits(model.lm_head.weight, states[:, batch.image])
        truth = torch.from_numpy(np.stack([grid.truth for grid in grids], axis=1))
        cell_loss = torch.stack(
            [F.cross_entropy(g.flatten(0, 1), t.flatten()) for g, t in zip(said, truth)]
        ).sum()
        weight = 0.0 if course.answers_only else _CELL_LOSS
        return loss + weight * cell_loss, {
            "answer": loss.item(),
            "cells": cell_loss.item(),
            **answer_accuracy(batch, logits),
        }

    fit(model, model.model.language_model, step_loss, steps, 3e-3, checkpoint, _STAGE)
