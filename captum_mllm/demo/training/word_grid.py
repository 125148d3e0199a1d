r"""Scenes written as words on a grid, in the place of a vision tower's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_mllm.datasets.scenes import BACKGROUNDS, Scene
from captum_mllm.demo.training.image_words import WORD_GROUPS, object_words
from captum_mllm.demo.training.vocabulary import token_ids

#: The words that a cell may say.
WORDS: tuple[str, ...] = tuple(dict.fromkeys((*sum(WORD_GROUPS, ()), *BACKGROUNDS)))

_SAID = 0.8
_PLACE_LENGTH = 0.5
_FREQUENCIES = 3


@dataclass(frozen=True)
class WordGrid:
    r"""What the cells of a scene say, and what they should.

    Args:
        said (numpy.ndarray): (N, number of :data:`WORDS`), rows that sum to 1: the words of a cell.
        truth (numpy.ndarray): (number of :data:`WORD_GROUPS`, N): the index of the word of each
            group that is due to the cell.
    """

    said: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]


def word_grid(
    scene: Scene, centers: npt.NDArray[np.float64], generator: np.random.Generator
) -> WordGrid:
    r"""Write a scene as words.

    A cell whose centre an object covers, taken for a disc, says most of the words for it, any other
    cell those for the background.

    Args:
        scene (Scene): The scene.
        centers (numpy.ndarray): (N, 2) centres of the cells, (y, x) in 0 to 1.
        generator (numpy.random.Generator): Decides how large the discs are and what is left out.

    Returns:
        WordGrid: The words.
    """
    owner = np.full(len(centers), len(scene.objects))
    for index, thing in enumerate(scene.objects):
        distance = np.hypot(centers[:, 1] - thing.x, centers[:, 0] - thing.y)
        covered = distance < thing.radius * generator.uniform(0.75, 1.05)
        owner[covered | (distance == distance.min())] = index
    phrases = [object_words(thing) for thing in scene.objects]
    phrases.append(("background", scene.background))
    table = np.zeros((len(phrases), len(WORDS)), dtype=np.float32)
    for row, phrase in zip(table, phrases):
        row[[WORDS.index(word) for word in phrase]] = 1
    said = table[owner]
    kept = said * (generator.random(said.shape) < _SAID)
    said = np.where(kept.any(axis=1, keepdims=True), kept, said)
    due = [
        [words.index(thing_words[number]) for thing_words in phrases[:-1]] + [len(words) - 1]
        for number, words in enumerate(WORD_GROUPS)
    ]
    return WordGrid(said / said.sum(axis=1, keepdims=True), np.array(due)[:, owner])


def word_embeddings(embeddings: Tensor, grids: list[WordGrid]) -> Tensor:
    r"""The mean embedding of the words that each cell says.

    Args:
        embeddings (Tensor): (V, D) input embeddings of all tokens.
        grids (list[WordGrid]): B grids of N cells.

    Returns:
        Tensor: (B, N, D).
    """
    said = torch.from_numpy(np.stack([grid.said for grid in grids]))
    return said @ embeddings[token_ids(WORDS)]


def place_codes(places: npt.NDArray[np.float64]) -> Tensor:
    r"""Codes of places: sines and cosines of their coordinates.

    Args:
        places (numpy.ndarray): (N, 2), (y, x) in 0 to 1.

    Returns:
        Tensor: (N, 12), float32, of length 1 each.
    """
    turns = np.pi * np.concatenate([places * 2.0**power for power in range(_FREQUENCIES)], axis=1)
    codes = np.concatenate([np.sin(turns), np.cos(turns)], axis=1) / turns.shape[1] ** 0.5
    return torch.from_numpy(codes).float()


def place_directions(width: int) -> Tensor:
    r"""Where in the space of embeddings a token's place is told.

    Args:
        width (int): D, the width of the embeddings.

    Returns:
        Tensor: (12, D), float32: orthogonal rows, the same for every model.
    """
    generator = torch.Generator().manual_seed(0)
    square, _ = torch.linalg.qr(torch.randn(width, 4 * _FREQUENCIES, generator=generator))
    return square.T * _PLACE_LENGTH
