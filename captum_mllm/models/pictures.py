"""Read pictures of any kind, and refuse what no model can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captum_mllm.models.pixels import to_tensor

Picture = Image.Image | np.ndarray | Tensor

SHORTEST_SIDE = 2
LARGEST_RATIO = 200


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
            "(H, W, 3) of dtype uint8, or a float tensor (3, H, W) in [0, 1]"
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
    r"""Refuse what is not a batch of pictures (B, 3, H, W) in [0, 1], give or take some noise."""
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.shape[1] != 3:
        given = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ValueError(f"got {given}, expected a picture tensor of shape (B, 3, H, W)")
    if not pictures.is_floating_point():
        raise ValueError(
            f"got pictures of dtype {pictures.dtype}, expected floating point in [0, 1]; divide "
            "8-bit pictures by 255"
        )
    check_size(tuple(pictures.shape[-2:]))
    low, high = pictures.detach().float().aminmax()
    # Methods that add noise leave [0, 1] a little, pictures in 8 bits or normalised ones far.
    if not (low >= -1 and high <= 2):
        raise ValueError(
            f"got pictures with values from {low:.4g} to {high:.4g}, expected [0, 1] and no NaN; "
            "divide 8-bit pictures by 255, and undo normalisation"
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
    picture = picture.detach().float()
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
