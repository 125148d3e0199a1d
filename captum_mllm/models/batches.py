"""``join`` puts several prompts into one batch, and ``make_passes`` makes one pass for all of
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from captum_mllm.models.backbone import Backbone
from captum_mllm.models.encoding import CROSS_MASK, Encoding
from captum_mllm.models.processing import image_axis
from captum_mllm.models.query import Prompt
from captum_mllm.models.states import States, gather_states

# What a model takes for each token; all else that a processor gives belongs to the images.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
# Beside them; of shape (3, rows, tokens).
POSITIONS = "position_ids"


def join(
    encodings: Sequence[Encoding], tokenizer: Any, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    r"""The inputs of some prompts as those of one batch.

    Args:
        encodings (Sequence[Encoding]): the prompts.
        tokenizer (Any): the tokenizer, for its padding token.
        side (str): where shorter prompts are padded. ``"left"``, out of sight, as ``generate``
            needs it. ``"right"``, where no token before it sees it in a causal model, so that no
            mask is needed and positions are as without it.

    Raises:
        ValueError: for images that do not go into one batch.
    """
    if len(encodings) == 1:
        return dict(encodings[0].inputs)
    longest = max(lengths(encodings))
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    fills = dict.fromkeys((*PER_TOKEN, POSITIONS, CROSS_MASK), 0)
    fills["input_ids"] = next(token for token in ids if token is not None)
    if side == "right":
        fills |= encodings[0].fills
    if len({frozenset(encoding.inputs) for encoding in encodings}) > 1:
        raise ValueError(
            "the prompts have images and videos, which do not go into one batch; explain them one "
            "at a time"
        )
    joined = {}
    for name in encodings[0].inputs:
        images = image_axis(name, encodings[0].inputs)
        parts = [encoding.inputs[name] for encoding in encodings]
        if name in fills:
            axis = 1 if name == CROSS_MASK else -1
            parts = [_pad(part, longest, fills[name], side, axis) for part in parts]
        elif images == 0 and len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(
                f"the prompts have {name} of shapes {[tuple(part.shape) for part in parts]}, which "
                "do not go into one batch; explain them one at a time"
            )
        joined[name] = torch.cat(parts, dim=1 if name == POSITIONS else images)
    return joined


def lengths(encodings: Sequence[Encoding]) -> list[int]:
    """How many tokens each prompt has."""
    return [encoding.inputs["input_ids"].shape[1] for encoding in encodings]


def _pad(rows: Tensor, length: int, fill: int, side: str, axis: int) -> Tensor:
    shape = list(rows.shape)
    shape[axis] = length - shape[axis]
    padding = rows.new_full(shape, fill)
    return torch.cat([padding, rows] if side == "left" else [rows, padding], dim=axis)


def split_states(
    hidden: Tensor, encodings: Sequence[Encoding], prompts: Sequence[Prompt]
) -> list[States]:
    r"""The states of each prompt, from those of a right-padded batch, (rows, S, d)."""
    parts = hidden.split([len(encoding.inputs["input_ids"]) for encoding in encodings])
    return [
        gather_states(part[:, :length].unflatten(0, (-1, encoding.windows)), encoding, query)
        for part, length, encoding, (_, query) in zip(parts, lengths(encodings), encodings, prompts)
    ]


@torch.no_grad()
def batch_states(
    backbone: Backbone, prompts: Sequence[Prompt], layer: int | None = None
) -> list[dict[int | None, States]]:
    r"""The states of some prompts with their answers, from one pass.

    Args:
        backbone (Backbone): the model.
        prompts (Sequence[tuple[tuple[Tensor, ...], Query]]): the open images, and the question
            with its answer.
        layer (int, optional): as in :meth:`MLLM.states`.

    Returns:
        list[dict[int or None, States]]: those of each prompt, at the end (None) and behind the
        layer.
    """
    encodings = [backbone.encode(*prompt) for prompt in prompts]
    inputs = join(encodings, backbone.tokenizer, "right")
    with backbone.evaluating():
        found = backbone.hidden_states(inputs, layer)
    split = {place: split_states(hidden, encodings, prompts) for place, hidden in found.items()}
    return [{place: split[place][turn] for place in split} for turn in range(len(prompts))]


def make_passes(backbone: Backbone, prompts: Sequence[Prompt], layer: int | None = None) -> None:
    r"""Within ``MLLM.remember``, make one pass for all prompts that are not remembered yet;
    arguments as of :func:`batch_states`."""
    missing = [
        (images, query)
        for images, query in prompts
        if not backbone.knows(*images, query, layer=layer)
    ]
    if not missing:
        return
    for (images, query), found in zip(missing, batch_states(backbone, missing, layer)):
        for place, states in found.items():
            backbone.keep(states, *images, query, layer=place, by_value=True)
