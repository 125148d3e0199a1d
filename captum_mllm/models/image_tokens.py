"""Which states of a layer belong to an image, and where in the image they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.encoding import Encoding
from captum_mllm.models.families import Family, find_family
from captum_mllm.models.layout import Layout, Piece
from captum_mllm.models.query import Query


@dataclass(frozen=True)
class ImageTokens:
    r"""The tokens of one explained image among all the states that a layer makes in a pass.

    Args:
        positions (Tensor): for each of B images the indices of its N tokens into the states,
            flattened over everything but the channels; the pieces of the layout one after the
            other, each in raster order; shape (B, N).
        layout (Layout): where they lie, N tokens.
    """

    positions: Tensor
    layout: Layout

    def gather(self, states: Tensor) -> Tensor:
        r"""The image's states, (B, N, d), from those of the layer, (..., d)."""
        return states.flatten(0, -2)[self.positions.to(states.device)]


def cross_tokens(encoding: Encoding, query: Query, n_states: int) -> tuple[ImageTokens, ...]:
    r"""The states of each explained image among those that the decoder looks at by cross-attention.

    Args:
        encoding (Encoding): the pass.
        query (Query): the question and the answer.
        n_states (int): how many there are for each row of the pass.
    """
    return _among(encoding, query, n_states)


def decoder_tokens(
    encoding: Encoding, query: Query, n_states: int | None = None
) -> tuple[ImageTokens, ...]:
    r"""The tokens of each explained image in a layer of the language model.

    Args:
        encoding (Encoding): the pass.
        query (Query): the question and the answer.
        n_states (int, optional): how many states the layer made in the pass, to be checked.

    Raises:
        ValueError: if that is not one for each token.
    """
    count, length = encoding.inputs["input_ids"].shape
    if n_states not in (None, count * length):
        raise ValueError(
            f"the layer makes {n_states} states for {count * length} tokens, expected one for "
            "each; give a layer of the language model"
        )
    return _among(encoding, query, length)


def _among(encoding: Encoding, query: Query, length: int) -> tuple[ImageTokens, ...]:
    """The images among rows of a length."""
    count = len(encoding.inputs["input_ids"])
    found = []
    for index in query.explained:
        positions = encoding.image_positions[index]
        starts = torch.arange(count, device=positions.device) * length
        rows = (starts[:, None] + positions).unflatten(0, (-1, encoding.windows))
        found.append(ImageTokens(rows.flatten(1), encoding.layouts[index]))
    return tuple(found)


def vision_tokens(
    encoding: Encoding, query: Query, config: Any, n_states: int
) -> tuple[ImageTokens, ...]:
    r"""The tokens of each explained image in a layer of the vision tower.

    The towers differ in what a layer holds: with a class token before the patches of each tile or
    without; as fine as the image tokens or, where the tower ends with a merger, finer; in raster
    order, or by blocks of patches that are merged into one token (Qwen-VL), the blocks sorted by
    attention window besides (Qwen2.5-VL). Class tokens are left out.

    Args:
        encoding (Encoding): the pass.
        query (Query): the question and the answer.
        config (PretrainedConfig): the model's configuration.
        n_states (int): how many states the layer made in the pass.

    Raises:
        ValueError: if that is not the number of states of a layer of patches.
    """
    family = find_family(config)
    if family is None or not family.tower:
        raise ValueError(
            f"it is not known in which order the vision tower of {config.model_type!r} holds its "
            "patches; give a layer of the language model"
        )
    pieces = [
        layout.pieces[: len(layout.pieces) // encoding.windows] for layout in encoding.layouts
    ]
    tokens = sum(piece.n_tokens for row in pieces for piece in row)
    count = len(encoding.inputs["input_ids"])
    merge = family.merge_size(config)
    shapes = {
        count * (tokens * finer**2 + class_token * sum(map(len, pieces))): (finer, class_token)
        for finer in {merge, 1}
        for class_token in (0, 1)
    }
    if n_states not in shapes:
        raise ValueError(
            f"the layer makes {n_states} states for images of {count * tokens} image tokens, "
            f"expected one of {sorted(shapes)}, a state for each patch or image token; give a "
            "layer of the vision tower"
        )
    finer, class_token = shapes[n_states]
    orders, start = [], 0
    for row in pieces:
        order = []
        for piece in row:
            order.append(start + class_token + _order(piece, finer, family, config.vision_config))
            start += class_token + piece.n_tokens * finer**2
        orders.append(torch.cat(order))
    starts = torch.arange(count)[:, None] * start
    device = encoding.inputs["input_ids"].device
    found = []
    for index in query.explained:
        rows = (starts + orders[index]).to(device).unflatten(0, (-1, encoding.windows))
        found.append(ImageTokens(rows.flatten(1), _refine(encoding.layouts[index], finer)))
    return tuple(found)


def _order(piece: Piece, finer: int, family: Family, vision: Any) -> Tensor:
    """Index in the tower's sequence of each patch of a piece, patches in raster order."""
    if not family.blocks:
        return torch.arange(piece.n_tokens * finer**2)
    down = torch.arange(piece.rows * finer)[:, None]
    across = torch.arange(piece.columns * finer)
    block = _block_order(piece, vision)[down // finer, across // finer]
    return (block * finer**2 + down % finer * finer + across % finer).flatten()


def _block_order(piece: Piece, vision: Any) -> Tensor:
    """Index in the tower's sequence of each merged block, (rows, columns)."""
    raster = torch.arange(piece.n_tokens)
    if getattr(vision, "window_size", None):
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        row, column = raster // piece.columns, raster % piece.columns
        window = row // side * math.ceil(piece.columns / side) + column // side
        # Where each block went when they were sorted by window: the inverse of the sorting.
        raster = window.argsort(stable=True).argsort()
    return raster.unflatten(0, (piece.rows, piece.columns))


def _refine(layout: Layout, finer: int) -> Layout:
    pieces = (
        replace(piece, rows=piece.rows * finer, columns=piece.columns * finer)
        for piece in layout.pieces
    )
    return Layout(layout.size, tuple(pieces))
