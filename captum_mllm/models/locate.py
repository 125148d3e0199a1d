"""locate: proves where image tokens lie, by changing parts of an image and seeing which move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_mllm.models.backbone import Backbone
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.hooks import hook
from captum_mllm.models.layout import Layout
from captum_mllm.models.towers import decoder_layers

# Cells that are changed in a pass.
_AT_ONCE = 8
# The part of a cell that has to lie in the image; the lesser one where no cell has the larger.
_MOSTLY, _PARTLY = 0.75, 0.2


class Located(NamedTuple):
    r"""How many cells of an image were found where they were looked for.

    Args:
        found (int): cells whose own token moved most.
        tried (int): cells that were changed.
    """

    found: int
    tried: int

    @property
    def share(self) -> float:
        return self.found / max(self.tried, 1)


class _Enough(Exception):
    """Ends a pass whose rest is of no interest."""


@torch.no_grad()
def locate(
    backbone: Backbone,
    encode: Callable[[Tensor], Encoding],
    image: Tensor,
    cells: int = 24,
    pieces: int = 4,
) -> Located:
    r"""Change cells of an image, one at a time, and see whether their own tokens move most.

    A token is compared with those of its own piece, in what the language model receives for them:
    its first layer mixes them with each other.

    Args:
        backbone (Backbone): the model.
        encode (Callable[[Tensor], Encoding]): makes inputs of images, (B, 3, H, W).
        image (Tensor): the image, (1, 3, H, W) in [0, 1].
        cells (int): about how many cells are changed. Default: 24
        pieces (int): of how many pieces at most. Default: 4

    Returns:
        Located: how many were found.
    """
    layout = encode(image).layouts[0]
    found = tried = 0
    for start, count, chosen in _cells(layout, cells, pieces):
        moved = torch.cat(
            [
                _movement(backbone, encode, image, [edges for _, edges in part])
                for part in (chosen[k : k + _AT_ONCE] for k in range(0, len(chosen), _AT_ONCE))
            ]
        )
        most = moved[:, start : start + count].argmax(1) + start
        own = torch.tensor([token for token, _ in chosen], device=most.device)
        found += int((most == own).sum())
        tried += len(chosen)
    return Located(found, tried)


def _movement(
    backbone: Backbone,
    encode: Callable[[Tensor], Encoding],
    image: Tensor,
    cells: list[tuple[int, int, int, int]],
) -> Tensor:
    """How far each token moves when a cell is changed, (cells, N), over two ways to change it."""
    moved = torch.zeros(1)
    for shown in (image, image.roll(1, 1)):
        changed = shown.repeat(len(cells), 1, 1, 1)
        for row, (left, top, right, bottom) in enumerate(cells):
            part = changed[row, :, top:bottom, left:right]
            part.copy_(1 - part.round())
        features = image_features(backbone, encode(torch.cat([shown, changed])))
        moved = moved.to(features) + (features[1:] - features[:1]).norm(dim=-1)
    return moved


def image_features(backbone: Backbone, encoding: Encoding) -> Tensor:
    r"""What the language model receives for the tokens of the first image, float32, (B, N, d)."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if encoding.crosses:
            states = kwargs["cross_attention_states"]
            seen.append(states.reshape(len(encoding.inputs["input_ids"]), -1, states.shape[-1]))
        else:
            seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    first = decoder_layers(backbone.model)[0]
    with backbone.evaluating(), hook(first, keep, before=True), suppress(_Enough):
        backbone.model(**encoding.inputs, use_cache=False)
    states = seen[0].float()
    found = states[:, encoding.image_positions[0].to(states.device)]
    return found.unflatten(0, (-1, encoding.windows)).flatten(1, 2)


def _cells(
    layout: Layout, count: int, pieces: int
) -> list[tuple[int, int, list[tuple[int, tuple[int, int, int, int]]]]]:
    """Of some pieces the first token, the number of tokens, and some tokens with their pixels."""
    last = len(layout.pieces) - 1
    wanted = {round(index * last / max(pieces - 1, 1)) for index in range(pieces)}
    count = max(count // len(wanted), 1)
    height, width = layout.size
    found, start = [], 0
    for index, piece in enumerate(layout.pieces):
        left, top, right, bottom = piece.box
        down, across = (bottom - top) / piece.rows, (right - left) / piece.columns
        inside, partly = [], []
        for token in range(piece.n_tokens if index in wanted else 0):
            y, x = top + token // piece.columns * down, left + token % piece.columns * across
            x0, y0 = max(round(x), 0), max(round(y), 0)
            x1, y1 = min(round(x + across), width), min(round(y + down), height)
            # Cells of padding have nothing to change.
            part = max(x1 - x0, 0) * max(y1 - y0, 0) / (down * across)
            if part > _PARTLY:
                partly.append((start + token, (x0, y0, x1, y1)))
            if part > _MOSTLY:
                inside.append(partly[-1])
        # An oblong image may fill no cell of a square.
        inside = inside or partly
        if inside:
            spread = {round(k * (len(inside) - 1) / max(count - 1, 1)) for k in range(count)}
            found.append((start, piece.n_tokens, [inside[place] for place in sorted(spread)]))
        start += piece.n_tokens
    return found
