r"""The loss of the stages that train the whole model: of answers, and of image tokens' words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.batches import answer_loss, hidden_states, text_batch
from captum_mllm.demo.training.image_words import (
    OBJECT_AREA,
    group_logits,
    image_consistency_loss,
    image_echo_loss,
    image_loudness_loss,
    image_word_loss,
)
from captum_mllm.demo.training.language_stage import answer_accuracy
from captum_mllm.demo.training.pool import Example

_TOKENS_PER_STEP = 3500
_TEXT_TOKENS = 120
_ENTERING_WEIGHT = 0.1
_LEAVING_WEIGHT = 0.15
_CONSISTENCY_WEIGHT = 0.2
_SHARPNESS = 3.0
# For the lens.
_POLISHED_ENTERING_WEIGHT = 0.3
_ECHO_WEIGHT = 0.03
_LOUDNESS_WEIGHT = 0.01


def pictures_per_step(architecture: Architecture, view: int) -> int:
    r"""How many pictures of a view make up a batch, so that all batches cost about the same."""
    tokens = len(architecture.token_centers(view))
    return max(1, min(48, _TOKENS_PER_STEP // (tokens + _TEXT_TOKENS)))


def caption_loss(
    model: Any,
    architecture: Architecture,
    examples: list[Example],
    pictures: npt.NDArray[np.uint8],
    view: int,
    vision: bool = True,
    zoom: float = 1.0,
    lens: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    r"""The loss of the answers to all questions about some pictures.

    Losses on what the image tokens say (:mod:`captum_mllm.demo.training.image_words`) go with that of the
    answers, which does not reach the last states of the image tokens.

    Args:
        model (transformers.PreTrainedModel): The model.
        architecture (Architecture): Its architecture.
        examples (list[Example]): B scenes and their captions.
        pictures (numpy.ndarray): (B, S, S, 3), uint8: their pictures as the model sees them.
        view (int): How finely it sees them.
        vision (bool): Whether the vision tower is trained. Default: True
        zoom (float): How much larger than the picture it is drawn. Default: 1.0
        lens (bool): Whether to add what polishes the logit lens: each object is due its own area
            instead of an average one, to which its rim comes closer than what is inside; tokens
            enter equally loud; and their logits in the end echo those on entering. Default: False

    Returns:
        tuple[Tensor, dict[str, float]]: The loss, a scalar, and figures for the report.
    """
    batch = text_batch([example.captions for example in examples], architecture, view)
    with torch.set_grad_enabled(vision):
        features = architecture.features(model, pictures, view)
    states = hidden_states(model, batch, features)
    loss, logits = answer_loss(model, batch, states)
    scenes = [example.scene for example in examples]
    embeddings = model.lm_head.weight
    entering = group_logits(embeddings, features)
    leaving = group_logits(embeddings, states[:, batch.image])
    area = None if lens else OBJECT_AREA
    image_loss = image_word_loss(leaving, scenes, area, zoom)
    consistency = image_consistency_loss(leaving, entering)
    total = loss + _LEAVING_WEIGHT * image_loss + _CONSISTENCY_WEIGHT * consistency
    if vision:
        sharp = [_SHARPNESS * part for part in entering]
        weight = _POLISHED_ENTERING_WEIGHT if lens else _ENTERING_WEIGHT
        total = total + weight * image_word_loss(sharp, scenes, area, zoom)
    figures = {
        "answer": loss.item(),
        "image": image_loss.item(),
        "consistency": consistency.item(),
        **answer_accuracy(batch, logits),
    }
    if lens:
        echo, loudness = image_echo_loss(leaving, entering), image_loudness_loss(entering)
        total = total + _ECHO_WEIGHT * echo + _LOUDNESS_WEIGHT * loudness
        figures |= {"echo": echo.item(), "loudness": loudness.item()}
    return total, figures
