r"""What the language model says at the image tokens, held to what they show.

The caption's loss does not reach the last states of the image tokens: nothing comes after them. In
large models they keep saying what the token shows, which is what the logit lens reads. Two losses
keep them saying it here. The first knows the caption's words and the average size of objects, the
second only what each token says when it enters the language model; neither knows where objects are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_mllm.datasets.scenes import COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.architecture import token_ids

#: The share of a picture that an object covers on average.
OBJECT_AREA = 0.05

_SMALLEST_SHARE = 1e-6
_SHARPNESS = 3.0
_GROUPS: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLORS))


def image_word_loss(logits: Tensor, scenes: list[Scene]) -> Tensor:
    r"""Cross-entropy between the words due to a scene and those that its image tokens say.

    Each image token says one shape or "background", and one colour or "background". Averaged over
    the picture, every object is due the share of its average size for its shape and its colour.

    Args:
        logits (Tensor): (B, N, V) logits of the image tokens.
        scenes (list[Scene]): The B scenes.

    Returns:
        Tensor: The mean loss, a scalar.
    """
    shapes = [[thing.shape for thing in scene.objects] for scene in scenes]
    colors = [[thing.color for thing in scene.objects] for scene in scenes]
    losses = [
        _share_loss(logits[..., token_ids((*words, "background"))], words, spoken)
        for words, spoken in zip(_GROUPS, (shapes, colors))
    ]
    return torch.stack(losses).sum()


def _share_loss(logits: Tensor, words: tuple[str, ...], spoken: list[list[str]]) -> Tensor:
    shares = logits.softmax(dim=-1).mean(dim=1)
    due = torch.zeros_like(shares)
    for row, names in zip(due, spoken):
        for name in names:
            row[words.index(name)] += OBJECT_AREA
        row[-1] = 1 - OBJECT_AREA * len(names)
    return -(due * (shares + _SMALLEST_SHARE).log()).sum(dim=1).mean()


def image_consistency_loss(logits: Tensor, entering: Tensor) -> Tensor:
    r"""Cross-entropy between what image tokens say in the end and what they said on entering.

    Args:
        logits (Tensor): (B, N, V) logits of the image tokens' last states.
        entering (Tensor): (B, N, V) logits of the vision tower's output for the same tokens; they
            are the fixed target.

    Returns:
        Tensor: The mean loss over image tokens, a scalar.
    """
    losses = []
    for words in _GROUPS:
        choices = token_ids((*words, "background"))
        target = (entering.detach()[..., choices] * _SHARPNESS).softmax(dim=-1)
        said = logits[..., choices].log_softmax(dim=-1)
        losses.append(-(target * said).sum(dim=-1).mean())
    return torch.stack(losses).sum()
