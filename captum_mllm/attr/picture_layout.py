"""Which part of its inputs a model sees, and whether attributions lie on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mllm.attr.resizing import plane, resize
from captum_mllm.models.layout import Layout, Size


def picture_layouts(
    forward_func: Any, inputs: tuple[Tensor, ...], additional_forward_args: tuple[Any, ...]
) -> tuple[Layout | None, ...]:
    r"""Where the tokens of each input lie, if the forward function tells, as an MLLM does."""
    hook = getattr(forward_func, "layouts", None)
    if hook is None:
        return (None,) * len(inputs)
    layouts = tuple(hook(*inputs, *additional_forward_args))
    # Embeddings of words, which come after the pictures, lie nowhere.
    return (*layouts, *[None] * (len(inputs) - len(layouts)))


def seen_cells(layouts: Sequence[Layout | None], size: Size) -> Tensor:
    r"""The cells of a map that the model sees at one of the scales, bool (h, w)."""
    seen = torch.zeros(size, dtype=torch.bool)
    for layout in layouts:
        seen |= torch.ones_like(seen) if layout is None else layout.coverage(size)
    return seen


def resize_seen(
    maps: Tensor, layout: Layout | None, size: Size, mode: str
) -> tuple[Tensor, Tensor | None]:
    r"""Resize maps of a picture of which the model may see only a part.

    What lies outside of that part is not known, so it is kept out of the neighbouring cells.

    Args:
        maps (Tensor): maps of the whole picture, (N, C, h, w), floating-point.
        layout (Layout, optional): where the tokens lie.
        size (tuple[int, int]): height and width of the result.
        mode (str): "bilinear" or "bicubic".

    Returns:
        tuple[Tensor, Tensor or None]: maps (N, C, *size), those given where they have that size,
        else 0 where the model sees nothing; and a bool mask (*size) of where it does, None where
        it sees all of the picture.
    """
    if layout is None:
        return resize(maps, size, mode), None
    before, after = layout.coverage(plane(maps)), layout.coverage(size)
    if before.all() and after.all():
        return resize(maps, size, mode), None
    if plane(maps) == size:
        return maps, after.to(maps.device)
    known = before.to(maps)[None, None]
    share = resize(known, size, mode)
    seen = after.to(maps.device) & (share[0, 0] > 0)
    values = resize(maps * known, size, mode) / torch.where(share > 0, share, 1.0)
    return torch.where(seen, values, 0.0), seen


def check_on_input(
    attributions: Sequence[Tensor], inputs: Sequence[Tensor], layouts: Sequence[Layout | None]
) -> None:
    r"""Refuse attributions that are not those of whole inputs, one for each example.

    A vision tower takes the windows and tiles of a picture as examples of their own, may see only
    a part of the picture, and holds tokens instead of planes.

    Args:
        attributions (Sequence[Tensor]): what a method returned.
        inputs (Sequence[Tensor]): what it was given.
        layouts (Sequence[Layout or None]): where the tokens of each input lie.

    Raises:
        ValueError: if one of them is not.
    """
    pairs = list(zip(inputs, layouts))
    # Attributions of layers are as many as the layer's outputs.
    pairs = pairs if len(pairs) == len(attributions) else pairs[:1] * len(attributions)
    for attribution, (given, layout) in zip(attributions, pairs, strict=True):
        # One row for all examples is Captum's answer where the forward function sums them up.
        fits = attribution.dim() == 0 or len(attribution) in (1, len(given))
        if layout is not None:
            fits = fits and attribution.dim() == 4
            fits = fits and (plane(attribution) == plane(given) or bool(layout.coverage().all()))
        if not fits:
            raise ValueError(
                f"attributions have shape {tuple(attribution.shape)} for an input of shape "
                f"{tuple(given.shape)}: only maps of 4 dimensions are resized and averaged, with a "
                "row for each example, and of a multimodal model those of the whole picture; for "
                "its layers take TokenGradCam, which puts windows, tiles and tokens where they lie"
            )
