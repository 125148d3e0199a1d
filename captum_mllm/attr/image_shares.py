"""image_shares, how much of a token's evidence lies in each image, and image_units, what it counts
in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.base import explains_tokens, wrapper_chain
from captum_mllm.attr.features import Features
from captum_mllm.models.layout import Layout, size_of


def image_units(
    method: Attribution,
    images: Sequence[Tensor],
    layouts: Sequence[Layout],
    features: Features | None = None,
) -> tuple[float, ...]:
    r"""
    How many values a method gives to each image: one for each segment, token or pixel.

    The cells of a map do not tell. A map has four cells for a token where tokens do not fall on a
    grid of the image, and a segment has as many cells as pixels.

    Args:
        method (Attribution): a method on an MLLM.
        images (Sequence[Tensor]): the explained images, (1, 3, H, W).
        layouts (Sequence[Layout]): where their tokens lie.
        features (Features, optional): what the method is asked for. Default: None

    Returns:
        tuple[float, ...]: one for each image. Tokens are as dense everywhere as in the finest
        piece of the layout.
    """
    if features is not None and features.segments is not None:
        return tuple(float(segments.members.shape[1]) for segments in features.segments)
    sizes = [size_of(image) for image in images]
    *_, innermost = wrapper_chain(method)
    if not explains_tokens(innermost):
        return tuple(float(height * width) for height, width in sizes)
    densities = [max(piece.density for piece in layout.pieces) for layout in layouts]
    return tuple(density * height * width for density, (height, width) in zip(densities, sizes))


def image_shares(maps: Sequence[Tensor], units: Sequence[float]) -> Tensor:
    r"""
    The share of each image in the evidence for each token.

    With :math:`m_{ti}` the mean of the positive part of the map of image i for token t, and
    :math:`u_i` the number of values that the method gives to the image,

    .. math::
        s_{ti} = \frac{u_i m_{ti}}{\sum_k u_k m_{tk}}

    Evidence against the token does not count: in most places of an image the lens says that the
    token is not there.

    Args:
        maps (Sequence[Tensor]): the maps of each of I images, (T, 1, h, w).
        units (Sequence[float]): what :func:`image_units` gives.

    Returns:
        Tensor: (T, I), in [0, 1]; each row sums to 1. Equal shares for a token that no image
        speaks for.

    Examples::
        >>> import torch
        >>> from captum_mllm.attr.image_shares import image_shares
        >>> image_shares([torch.ones(1, 1, 2, 2), 3 * torch.ones(1, 1, 4, 4)], [4, 4])
        tensor([[0.2500, 0.7500]])
    """
    totals = torch.stack(
        [unit * map_.float().relu().flatten(1).mean(1) for map_, unit in zip(maps, units)], dim=1
    )
    total = totals.sum(1, keepdim=True)
    even = torch.full_like(totals, 1 / len(maps))
    return torch.where(total > 0, totals / torch.where(total > 0, total, 1.0), even)
