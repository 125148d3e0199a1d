"""check_parity: whether a geometry's pixels are those that the processor makes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.layout import size_of
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.processing import process

# Roundings to 8 bits make a third of a level; an image that is cut or padded otherwise tens.
_TOLERANCE = 4 / 255


def check_parity(processor: Any, geometry: Geometry, image_token_id: int) -> None:
    r"""Compare the pixels that a geometry makes of an image with the processor's.

    They differ where an option of the image processor is not reflected in the geometry, so that
    the layout would be wrong as well.

    Args:
        processor (Any): the model's processor.
        geometry (Geometry): how images turn into tokens.
        image_token_id (int): the placeholder's index.

    Raises:
        ValueError: which names the options that are not the image processor's defaults.
    """
    try:
        difference = pixel_difference(processor, geometry, image_token_id, noise(72, 120))
    except Exception as error:
        # Options may be of any type, and lack any part.
        raise ValueError(
            f"{type(geometry.media_processor).__name__} cannot prepare an image as "
            f"{type(geometry).__name__} expects it ({type(error).__name__}: {error}). These of its "
            f"options are not the defaults: {geometry.changed_options}"
        ) from error
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"{type(geometry.media_processor).__name__} makes other pixels of an image than "
            f"{type(geometry).__name__} expects of it ({255 * difference:.0f} of 255 levels off), "
            "so its tokens would be looked for at the wrong places. These of its options are not "
            f"the defaults: {geometry.changed_options}"
        )


def noise(height: int, width: int) -> Tensor:
    r"""An image of coarse noise, (1, 3, height, width) in [0, 1], the same at every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, max(height // 12, 2), max(width // 12, 2), generator=generator)
    image = F.interpolate(coarse, size=(height, width), mode="bilinear", antialias=True)
    return image.mul(255).round() / 255


@torch.no_grad()
def pixel_difference(
    processor: Any, geometry: Geometry, image_token_id: int, image: Tensor
) -> float:
    r"""The mean difference of a geometry's pixels to the processor's, as a part of the range."""
    processed = process(
        processor, processor.image_token, [[to_pil(image[0])]], [{}], [image_token_id]
    )
    count = int((processed.image == 0).sum())
    inputs = processed.images | processed.inputs
    layout = geometry.layout(size_of(image), inputs, 0, count)
    expected = processed.inputs["pixel_values"]
    found = geometry.join([geometry.pixel_values(image, layout)], 1)
    found = geometry.fill(found, expected.shape)
    if found.shape != expected.shape:
        return 1.0
    normalized = geometry.option("do_normalize")
    spread = float(torch.as_tensor(geometry.option("image_std")).max()) if normalized else 1.0
    if not geometry.option("do_rescale"):
        spread /= 255
    return float((found - expected.to(found)).abs().mean()) * spread
