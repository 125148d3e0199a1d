"""From the image tokens of the language model to the patches of which each was made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mllm.models.layout import Layout
from captum_mllm.models.picture_tokens import PictureTokens


def share_with_patches(
    weights: Tensor,
    tokens: Sequence[PictureTokens],
    patches: Sequence[PictureTokens],
    n_patches: int,
) -> Tensor:
    r"""Give each patch an equal share of the weight of the token that was made of it.

    Args:
        weights (Tensor): of the states of the language model, (R, states).
        tokens (Sequence[PictureTokens]): the pictures among them.
        patches (Sequence[PictureTokens]): the same pictures among the states of the vision tower.
        n_patches (int): how many states the vision tower has.

    Returns:
        Tensor: weights of the states of the vision tower, (R, n_patches).
    """
    shared = weights.new_zeros(n_patches, len(weights))
    for above, below in zip(tokens, patches):
        finer = below.layout.pieces[0].rows // above.layout.pieces[0].rows
        source = torch.cat(_token_of_patch(above.layout, finer)).to(weights.device)
        shared[below.positions] = above.gather(weights.T)[:, source] / finer**2
    return shared.T


def _token_of_patch(layout: Layout, finer: int) -> list[Tensor]:
    """Index of the token of each patch of each piece, patches in raster order."""
    found, start = [], 0
    for piece in layout.pieces:
        grid = start + torch.arange(piece.n_tokens).unflatten(0, (piece.rows, piece.columns))
        found.append(grid.repeat_interleave(finer, 0).repeat_interleave(finer, 1).flatten())
        start += piece.n_tokens
    return found
