r"""Batches for training: each image with all questions about it, answered.

The questions share the image tokens of their image, which they all can attend to, and know
nothing of each other. So an image's tokens are computed once, and every answer is what the model
would give if its question alone were asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.datasets.captions import Caption
from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.vocabulary import (
    END,
    IMAGE,
    PAD,
    PROMPT_WORDS,
    START,
    VISION_END,
    VISION_START,
    token_ids,
)

_BEFORE_IMAGE = token_ids([START, "user", VISION_START])
_IGNORED = -100


@dataclass(frozen=True)
class TextBatch:
    r"""Images' places and, for each style, the prompt and the answer, padded on the right.

    Args:
        input_ids (Tensor): (B, S) token ids.
        labels (Tensor): (B, T) for each position after the image, the id of the token to predict;
            -100 elsewhere.
        position_ids (Tensor): (1, S), or (3, 1, S) for M-RoPE.
        mask (Tensor): (1, 1, S, S), bool: which position may attend to which.
        image (slice): Where the image tokens are.
        questions (tuple[slice, ...]): Where the prompt and answer of each style are.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    mask: Tensor
    image: slice
    questions: tuple[slice, ...]


def question_ids(style: str) -> list[int]:
    r"""What follows the image tokens, up to where the answer begins.

    Args:
        style (str): The style of the caption that is asked for.

    Returns:
        list[int]: Token ids.
    """
    return token_ids([VISION_END, *PROMPT_WORDS[style], END, START, "assistant"])


def text_batch(
    captions: Sequence[dict[str, Caption]], architecture: Architecture, view: int
) -> TextBatch:
    r"""Encode prompts and the captions that answer them.

    Args:
        captions (Sequence[dict[str, Caption]]): For each image, its caption in each style; the
            styles are the same for all.
        architecture (Architecture): The model's architecture.
        view (int): How finely it sees the images.

    Returns:
        TextBatch: The batch.
    """
    image_positions = architecture.image_positions(view)
    start = len(_BEFORE_IMAGE)
    image = slice(start, start + image_positions.shape[-1])
    rows = [_BEFORE_IMAGE + token_ids([IMAGE]) * (image.stop - start) for _ in captions]
    labels: list[list[int]] = [[] for _ in captions]
    positions = [image_positions.new_zeros(image_positions.shape[:-1] + (0,))]
    questions: list[slice] = []
    for style in captions[0]:
        question = question_ids(style)
        answers = [token_ids([*spoken[style].words, END]) for spoken in captions]
        length = len(question) + max(map(len, answers))
        for row, label, answer in zip(rows, labels, answers):
            padding = length - len(question) - len(answer)
            row += question + answer + token_ids([PAD]) * padding
            label += [_IGNORED] * (len(question) - 1) + answer + [_IGNORED] * (padding + 1)
        begin = questions[-1].stop if questions else image.stop
        questions.append(slice(begin, begin + length))
        positions.append(torch.arange(length).expand(*image_positions.shape[:-1], -1))
    after = torch.cat(positions, dim=-1) + start + int(image_positions.max()) + 1
    before = torch.arange(start).expand(*image_positions.shape[:-1], -1)
    position_ids = torch.cat([before, image_positions + start, after], dim=-1)
    return TextBatch(
        torch.tensor(rows),
        torch.tensor(labels),
        position_ids.unsqueeze(-2),
        _mask(image.stop, questions)[None, None],
        image,
        tuple(questions),
    )


def _mask(prefix: int, questions: list[slice]) -> Tensor:
    """Every position sees the prefix and its own question, as far as they come before it."""
    length = questions[-1].stop
    owner = torch.zeros(length, dtype=torch.long)
    for number, question in enumerate(questions):
        owner[question] = number + 1
    shared = torch.arange(length) < prefix
    return torch.ones(length, length, dtype=torch.bool).tril() & (
        shared[None, :] | (owner[:, None] == owner[None, :])
    )


def hidden_states(model: Any, batch: TextBatch, features: Tensor) -> Tensor:
    r"""Last hidden states of every position.

    Args:
        model (transformers.PreTrainedModel): The model.
        batch (TextBatch): The prompts and answers.
        features (Tensor): (B, N, D) instead of the image tokens.

    Returns:
        Tensor: (B, S, D).
    """
    embeddings = model.get_input_embeddings()(batch.input_ids)
    before, after = embeddings[:, : batch.image.start], embeddings[:, batch.image.stop :]
    states: Tensor = model.model.language_model(
        inputs_embeds=torch.cat([before, features.to(embeddings.dtype), after], dim=1),
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state
    return states


def answer_loss(model: Any, batch: TextBatch, states: Tensor) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of the answers, and their logits.

    Args:
        model (transformers.PreTrainedModel): The model.
        batch (TextBatch): The prompts and answers.
        states (Tensor): (B, S, D) last hidden states.

    Returns:
        tuple[Tensor, Tensor]: The mean loss over answer tokens, and the logits (B, T, V).
    """
    logits = model.lm_head(states[:, batch.image.stop :]).float()
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()), logits
