r"""What image tokens say of what they show.

Each image token says one shape or "background", one colour or "background", and "striped", "plain"
or "background". The losses know the words of a scene and the average size of objects, or what the
token said before; none knows where objects are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_mllm.datasets.scenes import COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.vocabulary import token_ids

#: The share of a picture that an object covers on average.
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


def image_word_loss(logits: list[Tensor], scenes: list[Scene], area: float = OBJECT_AREA) -> Tensor:
    r"""Cross-entropy between the words due to a scene and those that its image tokens say.

    Averaged over the picture, every object is due the share of its average size for its words.

    Args:
        logits (list[Tensor]): (B, N, number of words) for each of :data:`WORD_GROUPS`.
        scenes (list[Scene]): The B scenes.
        area (float): The share of the picture that an object covers, in (0, 1).
            Default: :data:`OBJECT_AREA`

    Returns:
        Tensor: The mean loss, summed over the groups; a scalar.
    """
    losses = []
    for number, (words, said) in enumerate(zip(WORD_GROUPS, logits)):
        due = torch.zeros(len(scenes), len(words))
        for row, scene in zip(due, scenes):
            for thing in scene.objects:
                row[words.index(object_words(thing)[number])] += area
        due[:, -1] = 1 - due[:, :-1].sum(dim=1)
        shares = said.softmax(dim=-1).mean(dim=1)
        losses.append(-(due * (shares + _SMALLEST_SHARE).log()).sum(dim=1).mean())
    return torch.stack(losses).sum()


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
