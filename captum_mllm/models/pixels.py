"""The image processors' arithmetic on tensors, differentiable: resize, pad, normalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_RESAMPLE = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}

# Pillow goes across and then down; from version 13 on the other way round where the height shrinks
# by more than twice as many pixels as the width.
_MAY_GO_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def to_pil(image: Tensor) -> Image.Image:
    r"""A tensor (3, H, W) in [0, 1] as the 8-bit image that processors take."""
    levels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    r"""An RGB image as a tensor (3, H, W) in [0, 1]; :func:`to_pil` gives it back exactly."""
    levels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return levels.permute(2, 0, 1).contiguous().float().div(255)


def saturate(images: Tensor) -> Tensor:
    r"""Images cut to [0, 1], as 8 bits are, with the gradient of what is not cut.

    Noise of a method and bicubic interpolation leave the range by a hair or more. The gradient of
    a clamp would be zero there, so an average over noise would show black and white parts of an
    image half as bright as grey ones, for no reason that lies in the model. What is passed on
    instead is the derivative towards the inside of the range.

    Args:
        images (Tensor): of any shape.

    Returns:
        Tensor: of the same shape, exactly the same where nothing is cut.

    Examples::
        >>> import torch
        >>> images = torch.tensor([-0.25, 0.5, 1.25], requires_grad=True)
        >>> saturate(images).tolist()
        [0.0, 0.5, 1.0]
        >>> saturate(images).sum().backward()
        >>> images.grad
        tensor([1., 1., 1.])
    """
    cut = images.detach().clamp(0, 1)
    return cut + (images - images.detach())


def resize(images: Tensor, size: tuple[int, int], resample: int | None) -> Tensor:
    r"""Resize (B, 3, H, W) as PIL does, but without rounding to 8 bits.

    PIL rounds to 8 bits after each of its two passes, which makes a difference of up to 2/255.

    Raises:
        ValueError: for a filter that torch does not have, or rounds otherwise, as NEAREST.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    resample = Image.Resampling.BILINEAR if resample is None else Image.Resampling(resample)
    if resample not in _RESAMPLE and resample != Image.Resampling.LANCZOS:
        raise ValueError(
            f"the image processor resizes by {resample.name}, for which there is no differentiable "
            "form; set its `resample` to LANCZOS, BICUBIC or BILINEAR, or use a method without "
            "gradients"
        )
    # The order of the two passes shows where an overshoot is cut in between.
    height, width = images.shape[-2:]
    downwards = _MAY_GO_DOWN_FIRST and height - size[0] > max(2 * (width - size[1]), 0)
    first = (size[0], width) if downwards else (height, size[1])
    for step in (first, size):
        # Bicubic interpolation and Lanczos overshoot.
        images = saturate(_interpolate(images, step, resample))
    return images


def _interpolate(images: Tensor, size: Sequence[int], resample: Image.Resampling) -> Tensor:
    if resample != Image.Resampling.LANCZOS:
        return F.interpolate(images, size=tuple(size), mode=_RESAMPLE[resample], antialias=True)
    height, width = images.shape[-2:]
    if size[0] != height:
        images = _lanczos(height, size[0]).to(images) @ images
    if size[1] != width:
        images = images @ _lanczos(width, size[1]).to(images).mT
    return images


def _lanczos(length: int, wanted: int) -> Tensor:
    """Weights (wanted, length) of Pillow's Lanczos filter of support 3."""
    zoom = length / wanted
    stretch = max(zoom, 1.0)
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * zoom
    # Pillow cuts the filter at whole pixels.
    start = (centres - 3 * stretch + 0.5).floor().clamp(min=0)
    end = (centres + 3 * stretch + 0.5).floor().clamp(max=length)
    pixels = torch.arange(length, dtype=torch.float64)
    distance = (pixels + 0.5 - centres[:, None]) / stretch
    weights = torch.where(distance.abs() < 3, torch.sinc(distance) * torch.sinc(distance / 3), 0.0)
    weights = weights * ((pixels >= start[:, None]) & (pixels < end[:, None]))
    return weights / weights.sum(1, keepdim=True)


def pad(
    images: Tensor, size: tuple[int, int], start: tuple[int, int], colour: Sequence[float] = ()
) -> Tensor:
    r"""Lay (B, 3, H, W) images on a canvas.

    Args:
        images (Tensor): images in [0, 1].
        size (tuple[int, int]): height and width of the canvas.
        start (tuple[int, int]): row and column of the images' upper left corner on it.
        colour (Sequence[float]): the canvas' three levels in [0, 1]. Default: black.
    """
    height, width = images.shape[-2:]
    levels = images.new_tensor([int(level * 255) / 255 for level in colour or (0, 0, 0)])
    canvas = levels[:, None, None].expand(len(images), 3, *size).clone()
    canvas[..., start[0] : start[0] + height, start[1] : start[1] + width] = images
    return canvas


def pad_square(images: Tensor, colour: Sequence[float]) -> Tensor:
    r"""Images in the middle of a square of a colour, as LLaVA's own processor may lay them."""
    height, width = images.shape[-2:]
    side = max(height, width)
    return pad(images, (side, side), ((side - height) // 2, (side - width) // 2), colour)


def normalize(images: Tensor, option: Callable[[str], Any]) -> Tensor:
    r"""Scale and shift (B, 3, H, W) in [0, 1] as an image processor does with 8-bit images.

    Args:
        images (Tensor): images in [0, 1].
        option (Callable[[str], Any]): gives an option of the image processor by its name.
    """
    images = images * (255 * option("rescale_factor") if option("do_rescale") else 255)
    if option("do_normalize"):
        mean, std = (
            torch.as_tensor(option(name), dtype=images.dtype, device=images.device)
            for name in ("image_mean", "image_std")
        )
        images = (images - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    return images


def pad_patches(patches: Tensor, length: int) -> Tensor:
    """(B, patches, d) with zeros behind them, (B, length, d)."""
    return torch.nn.functional.pad(patches, (0, 0, 0, max(length - patches.shape[1], 0)))
