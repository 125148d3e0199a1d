"""The processors' picture arithmetic on tensors, differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_RESAMPLE = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}

# Pillow goes across and then down; from version 13 on the other way round where the height shrinks
# by more than twice as many pixels as the width.
_MAY_GO_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def to_pil(picture: Tensor) -> Image.Image:
    r"""A tensor (3, H, W) in [0, 1] as the 8-bit picture that processors take."""
    levels = picture.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    r"""An RGB picture as a tensor (3, H, W) in [0, 1]; :func:`to_pil` gives it back exactly."""
    levels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return levels.permute(2, 0, 1).contiguous().float().div(255)


def saturate(pictures: Tensor) -> Tensor:
    r"""Pictures cut to [0, 1], as 8 bits are, with the gradient of what is not cut.

    Noise of a method and bicubic interpolation leave the range by a hair or more. The gradient of
    a clamp would be zero there, so an average over noise would show black and white parts of a
    picture half as bright as grey ones, for no reason that lies in the model. What is passed on
    instead is the derivative towards the inside of the range.

    Args:
        pictures (Tensor): of any shape.

    Returns:
        Tensor: of the same shape, exactly the same where nothing is cut.

    Examples::
        >>> import torch
        >>> pictures = torch.tensor([-0.25, 0.5, 1.25], requires_grad=True)
        >>> saturate(pictures).tolist()
        [0.0, 0.5, 1.0]
        >>> saturate(pictures).sum().backward()
        >>> pictures.grad
        tensor([1., 1., 1.])
    """
    cut = pictures.detach().clamp(0, 1)
    return cut + (pictures - pictures.detach())


def resize(pictures: Tensor, size: tuple[int, int], resample: int | None) -> Tensor:
    r"""Resize (B, 3, H, W) as PIL does, but without rounding to 8 bits.

    PIL rounds to 8 bits after each of its two passes, which makes a difference of up to 2/255.

    Raises:
        ValueError: for a filter that torch does not have.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    resample = Image.Resampling.BILINEAR if resample is None else Image.Resampling(resample)
    if resample not in _RESAMPLE:
        raise ValueError(
            f"the image processor resizes by {resample.name}, for which there is no differentiable "
            "form; set its `resample` to BICUBIC or BILINEAR, or use a method without gradients"
        )
    mode = _RESAMPLE[resample]
    antialias = resample != Image.Resampling.NEAREST
    # The order of the two passes shows where an overshoot is cut in between.
    height, width = pictures.shape[-2:]
    downwards = _MAY_GO_DOWN_FIRST and height - size[0] > max(2 * (width - size[1]), 0)
    first = (size[0], width) if downwards else (height, size[1])
    for step in (first, size):
        # Bicubic interpolation overshoots.
        pictures = saturate(F.interpolate(pictures, size=step, mode=mode, antialias=antialias))
    return pictures


def normalize(pictures: Tensor, image_processor: Any) -> Tensor:
    r"""Scale and shift (B, 3, H, W) in [0, 1] as the image processor does with 8-bit pictures."""
    if image_processor.do_rescale:
        pictures = pictures * (255 * image_processor.rescale_factor)
    else:
        pictures = pictures * 255
    if image_processor.do_normalize:
        mean = pictures.new_tensor(image_processor.image_mean)[:, None, None]
        std = pictures.new_tensor(image_processor.image_std)[:, None, None]
        pictures = (pictures - mean) / std
    return pictures
