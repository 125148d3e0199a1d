"""Read pictures of any kind, and refuse what no model can see."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captum_mllm.models.pixels import to_tensor

Picture = Image.Image | np.ndarray | Tensor

SHORTEST_SIDE = 2
LARGEST_RATIO = 200
# Noise of deviation 0.2 leaves [0, 1] by up to 1 at single pixels and by 0.08 on average where
# all of them are black or white. Normalised pictures leave it by more on average.
FARTHEST = 1.5
LARGEST_EXCESS = 0.1
ROUNDING = 0.01


def read_picture(picture: Picture) -> Tensor:
    r"""Any picture as a tensor (3, H, W) in [0, 1]; see :class:`ImageTextInput`."""
    if isinstance(picture, Image.Image):
        tensor = to_tensor(_to_rgb(picture))
    elif isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"got an array of shape {picture.shape} and dtype {picture.dtype}, expected "
                "(H, W, 3) of dtype uint8"
            )
        tensor = to_tensor(Image.fromarray(picture))
    elif isinstance(picture, Tensor):
        tensor = _check_tensor(picture)
    else:
        raise TypeError(
            f"got a picture of type {type(picture).__name__}, expected a PIL picture, an array "
            "(H, W, 3) of dtype uint8, or a float tensor (3, H, W) in [0, 1]; a file is read by "
            "PIL.Image.open"
        )
    check_size(tuple(tensor.shape[-2:]))
    return tensor


def check_size(size: tuple[int, ...]) -> None:
    """Refuse pictures in which there is nothing to see."""
    height, width = size
    if min(size) < SHORTEST_SIDE or max(size) > LARGEST_RATIO * min(size):
        raise ValueError(
            f"got a picture of {height} x {width} pixels (height x width), expected sides of at "
            f"least {SHORTEST_SIDE} pixels that differ at most {LARGEST_RATIO}-fold"
        )


def check_pictures(pictures: Any) -> None:
    r"""Refuse what is not a batch of pictures (B, 3, H, W) in [0, 1], give or take some noise.

    Methods such as :class:`captum.attr.NoiseTunnel` add noise of a deviation of 0.1 to 0.2, which
    leaves [0, 1] a little: such pictures are let through with a warning, and clamped later on.

    Raises:
        ValueError: with a guess at what was done to the picture.
    """
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
        given = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"got {given}, expected a picture tensor of shape (B, 3, H, W)")
    if not pictures.is_floating_point():
        raise ValueError(
            f"got pictures of dtype {pictures.dtype}, expected floating point in [0, 1]; divide "
            "8-bit pictures by 255"
        )
    check_size(tuple(pictures.shape[-2:]))
    values = pictures.detach().float()
    low, high = values.aminmax()
    if low >= 0 and high <= 1:
        return
    excess = (values - values.clamp(0, 1)).abs().mean()
    if not (low >= -FARTHEST and high <= 1 + FARTHEST and excess <= LARGEST_EXCESS):
        raise ValueError(
            f"got pictures with values from {low:.4g} to {high:.4g}, expected [0, 1]; "
            f"{_guess(float(low), float(high))}"
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        warnings.warn(
            "pictures have values outside of [0, 1], as noise of a method adds them; the model "
            "sees 0 or 1 there",
            stacklevel=2,
        )


def _guess(low: float, high: float) -> str:
    """What was done to a picture that is far outside of [0, 1]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "some are NaN or infinite"
    if high > 10:
        return "they look like 8-bit levels: divide them by 255"
    return (
        "they look normalised: undo it, since the model's processor does it; or, if a method adds "
        "noise to them, lower its deviation (`stdevs` of NoiseTunnel and GradientShap) to 0.2"
    )


def _check_tensor(picture: Tensor) -> Tensor:
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(
            f"got a picture of shape {tuple(picture.shape)}, expected (3, H, W) or (1, 3, H, W); "
            "explain one picture at a time"
        )
    if not picture.is_floating_point():
        raise ValueError(
            f"got a picture of dtype {picture.dtype}, expected floating point in [0, 1]; divide "
            "an 8-bit picture by 255"
        )
    # A copy, since the caller may go on to change the tensor in place.
    picture = picture.detach().float().clone()
    if not torch.isfinite(picture).all():
        raise ValueError("the picture has pixels that are NaN or infinite, expected [0, 1]")
    low, high = picture.aminmax()
    if low < 0 or high > 1:
        raise ValueError(
            f"got a picture with values from {low:.4g} to {high:.4g}, expected [0, 1]; divide an "
            "8-bit picture by 255, and undo normalisation"
        )
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the picture cannot be read: {error}; is the file whole?") from error
    if picture.mode == "F":
        raise ValueError(
            "got a picture of mode F, floating point without a known range; give a float tensor "
            "(3, H, W) in [0, 1] instead"
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # PIL cuts 16 bits at 255 instead of scaling them.
        levels = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray(np.clip(levels / 257, 0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
