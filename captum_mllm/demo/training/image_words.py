r"""What image tokens say of what they show.

Each image token says one shape or "background", one colour or "background", and "striped", "plain"
or "background". The losses know the words of a scene and the size of its objects, or what the
token said before; none knows where objects are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import EXTENT, SHAPES, signed_distance
from captum_mllm.demo.training.vocabulary import token_ids

#: The share of an image that an object covers on average.
OBJECT_AREA = 0.06

#: The groups of words of which each token says one; the last word of each is for the background.
WORD_GROUPS: tuple[tuple[str, ...], ...] = (
    (*SHAPES, "background"),
    (*COLORS, "background"),
    ("striped", "plain", "background"),
)

_SMALLEST_SHARE = 1e-6
_SHARPNESS = 3.0


def object_words(thing: SceneObject) -> tuple[str, ...]:
    r"""The word of each group that is due to an object.

    Args:
        thing (SceneObject): The object.

    Returns:
        tuple[str, ...]: One word for each of :data:`WORD_GROUPS`.
    """
    return thing.shape, thing.color, "striped" if thing.striped else "plain"


def object_area(thing: SceneObject) -> float:
    r"""The share of an image that an object covers, by its shape and its radius.

    Args:
        thing (SceneObject): The object.

    Returns:
        float: In 0 to 1.

    Examples::

        >>> round(object_area(SceneObject("square", "red", x=0.5, y=0.5, radius=0.1)), 3)
        0.028
    """
    return _square_radii(thing.shape) * thing.radius**2


@cache
def _square_radii(shape: str) -> float:
    """The area of a shape of radius 1."""
    steps = np.linspace(-EXTENT, EXTENT, 401)
    inside = signed_distance(shape, *np.meshgrid(steps, steps)) < 0
    return float(inside.mean() * (2 * EXTENT) ** 2)


def group_logits(embeddings: Tensor, states: Tensor) -> list[Tensor]:
    r"""The logits of the words of each group.

    Args:
        embeddings (Tensor): (V, D) output embeddings of all tokens.
        states (Tensor): (B, N, D) states of image tokens.

    Returns:
        list[Tensor]: (B, N, number of words) for each of :data:`WORD_GROUPS`, float32.
    """
    words = [word for group in WORD_GROUPS for word in group]
    logits = states @ embeddings[token_ids(words)].T
    return list(logits.float().split([len(group) for group in WORD_GROUPS], dim=-1))


def image_word_loss(
    logits: list[Tensor], scenes: list[Scene], area: float | None = OBJECT_AREA, zoom: float = 1.0
) -> Tensor:
    r"""Cross-entropy between the words due to a scene and those that its image tokens say.

    Averaged over the image, every object is due a share of it for its words.

    Args:
        logits (list[Tensor]): (B, N, number of words) for each of :data:`WORD_GROUPS`.
        scenes (list[Scene]): The B scenes.
        area (float, optional): The share of the image, in (0, 1), that is due to any object. If
            None, that of :func:`object_area`. Default: :data:`OBJECT_AREA`
        zoom (float): How much larger than the image it is drawn. Default: 1.0

    Returns:
        Tensor: The mean loss, summed over the groups; a scalar.
    """
    losses = []
    for number, (words, said) in enumerate(zip(WORD_GROUPS, logits)):
        due = torch.zeros(len(scenes), len(words))
        for row, scene in zip(due, scenes):
            for thing in scene.objects:
                share = object_area(thing) if area is None else area
                row[words.index(object_words(thing)[number])] += share * zoom**2
        # Objects that are drawn large may be cut off.
        due /= due.sum(dim=1, keepdim=True).clamp_min(1)
        due[:, -1] = 1 - due[:, :-1].sum(dim=1)
        shares = said.softmax(dim=-1).mean(dim=1)
        losses.append(-(due * (shares + _SMALLEST_SHARE).log()).sum(dim=1).mean())
    return torch.stack(losses).sum()


def image_echo_loss(leaving: list[Tensor], entering: list[Tensor]) -> Tensor:
    r"""Squared distance between the logits of image tokens in the end and those on entering.

    Where a softmax is sure, nothing holds its logits, but a logit lens compares them across tokens.
    So they are held to what the vision tower said, up to the shift and the factor that fit best.

    Args:
        leaving (list[Tensor]): (B, N, number of words) for each of :data:`WORD_GROUPS`, of the last
            states of the language model.
        entering (list[Tensor]): The same of the vision tower's output; they are the fixed target.

    Returns:
        Tensor: The mean over tokens and words, summed over the groups; a scalar.
    """
    losses = []
    for said, told in zip(leaving, entering):
        said, told = said - said.mean(), told.detach() - told.detach().mean()
        factor = (said * told).sum().detach() / told.square().sum().clamp_min(1e-12)
        losses.append((said - factor * told).square().mean())
    return torch.stack(losses).sum()


def image_loudness_loss(logits: list[Tensor]) -> Tensor:
    r"""Variance, over an image, of how loud its image tokens speak.

    A token at the rim of an object, which says the object and the background at once and both
    loudly, outbids those inside in logits, though not in probabilities. The loudness is the
    logarithm of the sum of a group's exponentiated logits, so that equally loud tokens rank by
    logits as they do by probabilities.

    Args:
        logits (list[Tensor]): (B, N, number of words) for each of :data:`WORD_GROUPS`.

    Returns:
        Tensor: The mean over images, summed over the groups; a scalar.
    """
    loudness = torch.stack([said.logsumexp(dim=-1) for said in logits])
    return loudness.var(dim=-1, correction=0).mean(dim=-1).sum()


def image_consistency_loss(leaving: list[Tensor], entering: list[Tensor]) -> Tensor:
    r"""Cross-entropy between what image tokens say in the end and what they said on entering.

    Args:
        leaving (list[Tensor]): (B, N, number of words) for each of :data:`WORD_GROUPS`, of the last
            states of the language model.
        entering (list[Tensor]): The same of the vision tower's output; they are the fixed target.

    Returns:
        Tensor: The mean loss over image tokens, summed over the groups; a scalar.
    """
    losses = []
    for said, told in zip(leaving, entering):
        target = (told.detach() * _SHARPNESS).softmax(dim=-1)
        losses.append(-(target * said.log_softmax(dim=-1)).sum(dim=-1).mean())
    return torch.stack(losses).sum()


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
