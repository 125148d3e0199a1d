"""What an image looks like without its content."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from captum_mllm._options import is_number

ImageBaseline = Tensor | float | Literal["blur", "mean"] | None
#: And what depends on the pixels that are left.
PixelBaseline = ImageBaseline | Literal["road"]

# Standard deviation of the blur, as a share of the shorter side: of a tenth, no shape is left.
BLUR = 0.1


def image_baseline(inputs: Tensor, baselines: ImageBaseline) -> Tensor:
    r"""
    The baseline of each image.

    Args:
        inputs (Tensor): Images, of shape (B, C, H, W) and a floating-point dtype.
        baselines (Tensor, float or str, optional): ``"blur"``, the image blurred by a Gaussian
            with a standard deviation of a tenth of the shorter side; ``"mean"``, its mean colour;
            a tensor that broadcasts with ``inputs``, such as the same scene without an object; or
            a number. None is 0, as in Captum.

    Returns:
        Tensor: Of the shape and dtype of ``inputs``.

    Raises:
        TypeError: If it is of another type.
        ValueError: If a tensor does not fit ``inputs``, or has values that are not finite.
    """
    if isinstance(baselines, str):
        if baselines == "blur":
            return _blur(inputs)
        if baselines == "mean":
            return inputs.float().mean((-2, -1), keepdim=True).to(inputs).expand_as(inputs)
        raise ValueError(
            f'baselines must be "blur", "mean", a tensor or a number, got {baselines!r}'
        )
    if baselines is None:
        return torch.zeros_like(inputs)
    if not isinstance(baselines, Tensor) and not is_number(baselines):
        raise TypeError(
            f'baselines must be "blur", "mean", a tensor or a number, got '
            f"{type(baselines).__name__}"
        )
    tensor = torch.as_tensor(baselines).to(inputs)
    try:
        tensor = tensor.expand_as(inputs)
    except RuntimeError as error:
        raise ValueError(
            f"baselines of shape {tuple(tensor.shape)} do not fit inputs of shape "
            f"{tuple(inputs.shape)}"
        ) from error
    if not tensor.isfinite().all():
        raise ValueError("baselines must be finite, got NaN or infinity")
    return tensor


def _blur(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    sigma = max(BLUR * min(height, width), 1e-3)
    values = images.float()
    blurred = _gaussian(height, sigma, values) @ values @ _gaussian(width, sigma, values).mT
    return blurred.to(images)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """(size, size) weights of a Gaussian filter; those that would lie outside are left out."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / sigma).square())
    return weights / weights.sum(1, keepdim=True)
