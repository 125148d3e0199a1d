r"""Batches for training: pictures of one size and their captions, encoded as by the processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.datasets.captions import Caption
from captum_mllm.demo.architecture import (
    END,
    IMAGE,
    PAD,
    PATCH_SIZE,
    START,
    VISION_END,
    VISION_START,
    token_ids,
)

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

BEFORE_IMAGE = token_ids([START, "user", VISION_START])
_AFTER_IMAGE = token_ids([VISION_END, "describe", "the", "image", ".", END, START, "assistant"])
_IGNORED = -100


@dataclass(frozen=True)
class TextBatch:
    r"""Prompts with answers of several lengths, padded on the right.

    Args:
        input_ids (Tensor): (B, S) token ids.
        labels (Tensor): (B, T) ids of the answers, -100 at the padding.
        position_ids (Tensor): (3, B, S) positions in time, height and width.
        grid (int): Image tokens on each side of the picture.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    grid: int

    @property
    def image(self) -> slice:
        r"""Where the image tokens are."""
        return slice(len(BEFORE_IMAGE), len(BEFORE_IMAGE) + self.grid**2)

    @property
    def predicting(self) -> slice:
        r"""The positions whose output predicts the answer."""
        length = self.input_ids.shape[1]
        return slice(length - self.labels.shape[1] - 1, length - 1)


def image_positions(grid: int, length: int) -> Tensor:
    r"""Positions of a prompt with one square picture, as Qwen2-VL counts them.

    Args:
        grid (int): Image tokens on each side.
        length (int): Tokens in all.

    Returns:
        Tensor: (3, length) positions in time, height and width.
    """
    before = len(BEFORE_IMAGE)
    rows = torch.arange(grid).repeat_interleave(grid)
    columns = torch.arange(grid).repeat(grid)
    inside = torch.stack([torch.zeros_like(rows), rows, columns]) + before
    after = torch.arange(length - before - grid**2) + before + grid
    return torch.cat([torch.arange(before).expand(3, -1), inside, after.expand(3, -1)], dim=1)


def text_batch(captions: Sequence[Caption], grid: int) -> TextBatch:
    r"""Encode the prompt and the captions that answer it.

    Args:
        captions (Sequence[Caption]): One caption for each picture.
        grid (int): Image tokens on each side of the pictures.

    Returns:
        TextBatch: The batch.
    """
    prompt = BEFORE_IMAGE + token_ids([IMAGE]) * grid**2 + _AFTER_IMAGE
    answers = [token_ids([*caption.words, END]) for caption in captions]
    longest = max(map(len, answers))
    padding = token_ids([PAD])
    rows = [prompt + answer + padding * (longest - len(answer)) for answer in answers]
    labels = [answer + [_IGNORED] * (longest - len(answer)) for answer in answers]
    positions = image_positions(grid, len(rows[0]))[:, None].expand(-1, len(rows), -1)
    return TextBatch(torch.tensor(rows), torch.tensor(labels), positions, grid)


def patches(pictures: npt.NDArray[np.uint8], grid: int) -> Tensor:
    r"""Resize, normalise and cut pictures into patches, as the processor does.

    Args:
        pictures (numpy.ndarray): (B, S, S, 3), uint8.
        grid (int): Patches on each side.

    Returns:
        Tensor: (B * grid * grid, 3 * 2 * 8 * 8), float32: each patch twice, once for each of the
        two moments that the vision tower expects.
    """
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    size = grid * PATCH_SIZE
    if size != pixels.shape[-1]:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
        pixels = pixels.clamp(0, 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    pixels = (pixels / 255 - mean) / std
    cut = pixels.reshape(-1, 3, grid, PATCH_SIZE, grid, PATCH_SIZE).permute(0, 2, 4, 1, 3, 5)
    twice = cut.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return twice.reshape(len(pictures) * grid**2, -1)


def image_features(
    model: Qwen2VLForConditionalGeneration, pixel_values: Tensor, grid: int
) -> Tensor:
    r"""What the vision tower says about pictures of one size.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        pixel_values (Tensor): (B * grid * grid, 384) patches of the pictures.
        grid (int): Image tokens on each side.

    Returns:
        Tensor: (B, grid * grid, D).
    """
    pictures = len(pixel_values) // grid**2
    grids = torch.tensor([[1, grid, grid]]).expand(pictures, -1)
    features = model.model.visual(pixel_values, grid_thw=grids).pooler_output
    return features.view(pictures, grid**2, -1)


def answer_states(
    model: Qwen2VLForConditionalGeneration, batch: TextBatch, features: Tensor | None = None
) -> Tensor:
    r"""Last hidden states of every position.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        batch (TextBatch): The prompts and answers.
        features (Tensor, optional): (B, grid * grid, D) to put in the place of the image tokens.
            If None, the embeddings of ``batch.input_ids`` stay there. Default: None

    Returns:
        Tensor: (B, S, D).
    """
    embeddings = model.get_input_embeddings()(batch.input_ids)
    if features is not None:
        before, after = embeddings[:, : batch.image.start], embeddings[:, batch.image.stop :]
        embeddings = torch.cat([before, features, after], dim=1)
    return model.model.language_model(
        inputs_embeds=embeddings, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state


def answer_loss(
    model: Qwen2VLForConditionalGeneration, batch: TextBatch, states: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of the answers, and their logits.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        batch (TextBatch): The prompts and answers.
        states (Tensor): (B, S, D) last hidden states.

    Returns:
        tuple[Tensor, Tensor]: The mean loss over answer tokens, and the logits (B, T, V).
    """
    logits = model.lm_head(states[:, batch.predicting]).float()
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()), logits
