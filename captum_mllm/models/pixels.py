"""The processors' picture arithmetic on tensors, differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_RESAMPLE = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def to_pil(picture: Tensor) -> Image.Image:
    r"""A tensor (3, H, W) in [0, 1] as the 8-bit picture that processors take."""
    levels = picture.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    r"""An RGB picture as a tensor (3, H, W) in [0, 1]; :func:`to_pil` gives it back exactly."""
    levels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return levels.permute(2, 0, 1).contiguous().float().div(255)


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
    # Cut what bicubic interpolation overshoots, as 8 bits do, but keep added noise.
    low, high = pictures.detach().amin().clamp(max=0), pictures.detach().amax().clamp(min=1)
    # Pillow goes across and then down, or (13 and later) the other way where the height shrinks
    # clearly more. The order shows only where an overshoot is cut in between.
    height, width = pictures.shape[-2:]
    downwards = size[0] < height and size[0] * width < height * size[1]
    first = (size[0], width) if downwards else (height, size[1])
    for step in (first, size):
        pictures = F.interpolate(pictures, size=step, mode=mode, antialias=antialias)
        pictures = pictures.clamp(low, high)
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
