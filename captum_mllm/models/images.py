"""`read_image` reads an image of any kind, and `check_images` refuses what no model can see."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from captum_mllm.models.pixels import to_tensor

ImageLike = Image.Image | np.ndarray | Tensor

SHORTEST_SIDE = 2
LARGEST_RATIO = 200
# A scale that makes more is a size in pixels, or per cent.
MOST_PIXELS = 1 << 28
# Noise of deviation 0.2 leaves [0, 1] by up to 1 at single pixels and by 0.08 on average where
# all of them are black or white. Normalised images leave it by more on average.
FARTHEST = 1.5
LARGEST_EXCESS = 0.1
ROUNDING = 0.01
# A given image may leave [0, 1] by a quarter of an 8-bit level, as rounding does.
HAIR = 1e-3
# Bits per level of cameras, scanners and scientific instruments.
DEPTHS = (8, 10, 12, 14, 16, 24, 31, 32)

_EXPECTED = (
    "expected a PIL image, or an array or tensor of integer levels or of floating point in [0, 1]"
)
_CHANNELS = "1 channel for grey, 3 for RGB or 4 for RGBA"


def read_image(image: ImageLike) -> Tensor:
    r"""Read an image of any kind, on the CPU.

    Args:
        image (PIL.Image.Image, numpy.ndarray or Tensor): see :class:`ImageTextInput`.

    Returns:
        Tensor: float32, of shape (3, H, W), in [0, 1].

    Raises:
        TypeError: for what is not an image, or has numbers of a kind that images do not have.
        ValueError: for an image that cannot be read, of another shape, too small or too narrow,
            or with levels of an unknown range.
    """
    if isinstance(image, Image.Image):
        return _read_pil(image)
    if isinstance(image, np.ndarray):
        return _read_array(image)
    if isinstance(image, Tensor):
        return _read_tensor(image)
    raise TypeError(
        f"got an image of type {type(image).__name__}, {_EXPECTED}; a file is read by "
        "PIL.Image.open"
    )


def check_size(size: tuple[int, ...]) -> None:
    """Refuse images in which there is nothing to see."""
    height, width = size
    if min(size) < SHORTEST_SIDE or max(size) > LARGEST_RATIO * min(size):
        raise ValueError(
            f"got an image of {height} x {width} pixels (height x width), expected sides of at "
            f"least {SHORTEST_SIDE} pixels that differ at most {LARGEST_RATIO}-fold"
        )


def check_scaled(size: tuple[int, int], scale: float) -> None:
    """Refuse a scale that makes an image of more pixels than any model is shown."""
    if scale > 1 and math.prod(size) > MOST_PIXELS:
        raise ValueError(
            f"scale {scale:g} makes an input of {size[0]} x {size[1]} pixels; scales are factors "
            "on height and width, such as (0.5, 1.0, 2.0)"
        )


def check_images(images: Any, channels: int = 3) -> None:
    r"""Refuse what is not a batch of images (B, 3, H, W) in [0, 1], give or take some noise.

    Methods such as :class:`captum.attr.NoiseTunnel` add noise of a deviation of 0.1 to 0.2, which
    leaves [0, 1] a little: such images are let through with a warning, and clamped later on. Groups
    of F frames have 3 F channels.

    Raises:
        ValueError: with a guess at what was done to the image.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"got {given}, expected an image tensor of shape (B, {channels}, H, W)")
    if not images.is_floating_point():
        raise ValueError(
            f"got images of dtype {images.dtype}, expected floating point in [0, 1]; divide "
            "8-bit images by 255"
        )
    check_size(tuple(images.shape[-2:]))
    values = images.detach().float()
    low, high = values.aminmax()
    if low >= 0 and high <= 1:
        return
    excess = (values - values.clamp(0, 1)).abs().mean()
    if not (low >= -FARTHEST and high <= 1 + FARTHEST and excess <= LARGEST_EXCESS):
        raise ValueError(
            f"got images with values from {low:.4g} to {high:.4g}, expected [0, 1]; "
            f"{_guess(float(low), float(high))}"
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        warnings.warn(
            "images have values outside of [0, 1], as noise of a method adds them; the model "
            "sees 0 or 1 there",
            stacklevel=2,
        )


def _guess(low: float, high: float) -> str:
    """What was done to an image that is far outside of [0, 1]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "some are NaN or infinite"
    if high > 10:
        return "they look like 8-bit levels: divide them by 255"
    return (
        "they look normalised: undo it, since the model's processor does it; or, if a method adds "
        "noise to them, lower its deviation (`stdevs` of NoiseTunnel and GradientShap) to 0.2"
    )


def _read_array(array: np.ndarray) -> Tensor:
    """(H, W), (H, W, C) or (1, H, W, C), of any byte order and strides."""
    shape, kind = array.shape, array.dtype.kind
    if kind not in "buif":
        raise TypeError(f"got an array of dtype {array.dtype}, {_EXPECTED}")
    if np.ma.is_masked(array):
        raise ValueError("got an array with masked pixels, expected a value for each of them")
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = np.asarray(array)[..., None] if array.ndim == 2 else np.asarray(array)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        hint = "explain one image at a time"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "its channels come first, so give array.transpose(1, 2, 0)"
        raise ValueError(
            f"got an array of shape {shape}, expected (H, W) or (H, W, C) with {_CHANNELS}; {hint}"
        )
    # No tensor has strides below zero or foreign byte order; wide integers are whole in float64.
    plain = array.dtype in (np.uint8, np.bool_)
    copied = np.array(array.transpose(2, 0, 1), dtype=None if plain else np.float64, order="C")
    return _to_unit(torch.from_numpy(copied), kind in "ui", f"an array of dtype {array.dtype}")


def _read_tensor(tensor: Tensor) -> Tensor:
    """(H, W), (C, H, W) or (1, C, H, W), on any device."""
    shape, what = tuple(tensor.shape), f"a tensor of dtype {tensor.dtype}"
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise TypeError(f"got {what} and layout {tensor.layout}, {_EXPECTED}")
    if tensor.is_meta:
        raise ValueError("got a tensor on the device 'meta', which holds no pixels")
    tensor = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or len(tensor) not in (1, 3, 4):
        hint = "explain one image at a time"
        if tensor.ndim == 3 and tensor.shape[-1] in (1, 3, 4):
            hint = "its channels come last, so give tensor.permute(2, 0, 1)"
        raise ValueError(
            f"got a tensor of shape {shape}, expected (3, H, W) or (1, 3, H, W), with {_CHANNELS}; "
            f"{hint}"
        )
    plain = tensor.dtype in (torch.uint8, torch.bool)
    whole = not tensor.is_floating_point()
    # A copy, since the caller may go on to change the tensor in place.
    copied = tensor.detach().to("cpu", tensor.dtype if plain else torch.float64, copy=True)
    return _to_unit(copied, whole, what)


def _to_unit(values: Tensor, whole: bool, what: str) -> Tensor:
    r"""Levels (C, H, W) to RGB in [0, 1], on white where they are transparent.

    Args:
        values (Tensor): uint8, bool, or float64 for all other dtypes.
        whole (bool): whether they were integers.
        what (str): what was given, for errors.
    """
    check_size(tuple(values.shape[-2:]))
    if values.dtype == torch.bool:
        unit = values.float()
    elif values.dtype == torch.uint8:
        unit = values.float().div(255)
    elif whole:
        unit = (values / _full_scale(values, what)).float()
    else:
        unit = _checked_floats(values, what).float()
    if len(unit) == 4:
        colour, opacity = unit[:3], unit[3:]
        unit = colour * opacity + (1 - opacity)
    return unit.expand(3, -1, -1).contiguous()


def _checked_floats(values: Tensor, what: str) -> Tensor:
    """Values in [0, 1], clamped by a hair at most."""
    if not torch.isfinite(values).all():
        raise ValueError(f"got {what} with pixels that are NaN or infinite, expected [0, 1]")
    low, high = map(float, values.aminmax())
    if low < -HAIR or high > 1 + HAIR:
        raise ValueError(
            f"got {what} with values from {low:.4g} to {high:.4g}, expected [0, 1]; "
            f"{_guess(low, high)}"
        )
    return values.clamp(0, 1)


def _full_scale(levels: Tensor, what: str) -> float:
    r"""The level that is white, that of the smallest usual depth which holds all levels.

    Files store levels of 10, 12 or 14 bits in 16 bits, and any levels in 32 bits, without a word
    on which they are. An image that fills less than half of a depth may have been meant otherwise,
    so there is a warning.
    """
    low, high = map(float, levels.aminmax())
    if low < 0 or high >= 2 ** DEPTHS[-1]:
        raise ValueError(
            f"got {what} with levels from {low:.0f} to {high:.0f}, whose black and white cannot be "
            "told; choose the levels to show, such as a CT's window, and give "
            "((levels - black) / (white - black)).clip(0, 1)"
        )
    depth = next(bits for bits in DEPTHS if high < 2**bits)
    if high < 2 ** (depth - 1):
        warnings.warn(
            f"got {what} with levels up to {high:.0f}, taken for levels of {depth} bits, so that "
            f"{2**depth - 1} is white; if another level is, give levels / white as floating point",
            stacklevel=7,
        )
    return float(2**depth - 1)


def _read_pil(image: Image.Image) -> Tensor:
    _warn_of_frames(image)
    try:
        image.load()
        transparent = image.info.get("transparency")
        image = ImageOps.exif_transpose(image)
        # Colours that were multiplied by their opacity.
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        if straight is not None:
            image = image.convert(straight)
    except Exception as error:
        # Pillow has no error of its own for files that are closed, cut short or broken.
        reason = str(error) or "its file is closed"
        raise ValueError(
            f"the image cannot be read: {reason}; is the file whole, and still open? An image "
            "opened in a `with` block is used, or loaded by image.load(), before the block ends"
        ) from error
    check_size(image.size[::-1])
    mode = f"an image of mode {image.mode}"
    if image.mode == "F" or image.mode.startswith("I"):
        levels = torch.from_numpy(np.array(image, dtype=np.float64))
        unit = _to_unit(levels[None], image.mode != "F", mode)
        if isinstance(transparent, int):
            unit[:, levels == transparent] = 1
        # As fine as 8 bits, like all other modes.
        return unit.mul(255).round().div(255)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return to_tensor(image.convert("RGB"))
    except Exception as error:
        # What a file says of its transparency or palette may be anything.
        raise ValueError(f"{mode} cannot be converted to RGB: {error}") from error


def _warn_of_frames(image: Image.Image) -> None:
    """An animation or a document of several pages shows the model one of them."""
    try:
        # A photo with a small preview of itself is a file of two images.
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        shown = image.tell()
    except Exception:
        # What cannot be read is refused where it is loaded.
        return
    if count > 1:
        warnings.warn(
            f"got an image of {count} frames, of which the model sees frame {shown}; choose "
            "another by image.seek(index), or give each frame as an image",
            stacklevel=6,
        )
