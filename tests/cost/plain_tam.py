"""TAM the plain way: all states and logits kept, and a loop over every token, word and cell.

This is how the published code goes about it, written anew from its description. It serves as the
measure of what vectorising saves, and agrees with maps of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from tests.cost.subjects import Subject

FloatArray = NDArray[np.floating[Any]]
WINDOW = 3


@dataclass(frozen=True)
class PlainPass:
    r"""All that a pass leaves behind.

    Args:
        logits (Tensor): of every position, shape (S, V).
        hidden_states (tuple[Tensor, ...]): of every layer and position.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Places:
    r"""Where the parts of the sequence lie.

    Args:
        ids (list[int]): the whole sequence.
        image (list[int]): positions of the image tokens.
        words (list[int]): positions of the words of the prompt.
        answer (list[int]): positions of the answer.
        grid (tuple[int, int]): rows and columns of the image tokens.
    """

    ids: list[int]
    image: list[int]
    words: list[int]
    answer: list[int]
    grid: tuple[int, int]

    def row(self, place: int) -> int:
        """The position whose logits count for a token of the text."""
        return place if place in self.words else place - 1


@torch.no_grad()
def plain_pass(subject: Subject) -> tuple[PlainPass, Places]:
    r"""A pass that keeps the states of every layer and the logits of every position."""
    mllm, query = subject.mllm, subject.query
    encoding = mllm.encode((subject.image,), query)
    output = mllm.model(**encoding.inputs, output_hidden_states=True, use_cache=False)
    ids = encoding.inputs["input_ids"][0].tolist()
    places = Places(
        ids=[*ids, query.answer_ids[-1]],
        image=encoding.image_positions[0].tolist(),
        words=encoding.text_positions.tolist(),
        answer=(encoding.answer_rows + 1).tolist(),
        grid=encoding.layouts[0].grid,
    )
    return PlainPass(output.logits[0], output.hidden_states), places


def plain_maps(seen: PlainPass, places: Places) -> list[FloatArray]:
    r"""The maps of the answer's tokens, one after the other, each (h, w) in [0, 1]."""
    text = [*places.words, *places.answer]
    activations: list[FloatArray] = []
    maps = []
    for index, place in enumerate(text):
        scores = seen.logits[:, places.ids[place]].clamp(min=0).float().cpu().numpy()
        activations.append(scores[places.image])
        if index < len(places.words):
            continue
        cleaned = _without_interference(scores, activations, text[: index + 1], places)
        maps.append(_filtered(_normalized(cleaned, scores, place, places).reshape(places.grid)))
    return maps


def _without_interference(
    scores: FloatArray, activations: list[FloatArray], text: list[int], places: Places
) -> FloatArray:
    """The last token's activation, less what the words before it account for."""
    own = activations[-1]
    said = places.ids[text[-1]]
    total = 0.0
    interference = np.zeros_like(own)
    for place, activation in zip(text[:-1], activations):
        if places.ids[place] == said:
            continue
        weight = scores[places.row(place)]
        total += weight
        interference = interference + weight * activation
    if total <= 0 or not interference.any():
        return own
    interference = interference / total
    found = minimize_scalar(lambda share: float(((own - share * interference) ** 2).sum()))
    return np.maximum(own - found.x * interference, 0)


def _normalized(cleaned: FloatArray, scores: FloatArray, place: int, places: Places) -> FloatArray:
    """The activation on one scale with the text's scores."""
    earlier = [*places.words, *places.answer[: places.answer.index(place)]]
    text = [scores[places.row(before)] for before in earlier]
    low, high = min(cleaned.min(), min(text)), max(cleaned.max(), max(text))
    return (cleaned - low) / (high - low) if high > low else np.zeros_like(cleaned)


def _filtered(grid: FloatArray) -> FloatArray:
    """The rank Gaussian filter, window by window."""
    padded = np.pad(grid, WINDOW // 2, mode="reflect")
    ranks = np.arange(WINDOW**2) - WINDOW**2 // 2
    out = np.zeros_like(grid)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            window = np.sort(padded[row : row + WINDOW, column : column + WINDOW], axis=None)
            mean = window.mean()
            if mean <= 0:
                continue
            sigma = window.std() / mean
            weights = np.exp(-(ranks**2) / (2 * sigma**2)) if sigma > 0 else 1.0 * (ranks == 0)
            out[row, column] = (window * weights).sum() / weights.sum()
    return out
