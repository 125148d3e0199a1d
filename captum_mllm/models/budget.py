"""`estimate` tells what an explanation costs before it runs, `fit_scales` bounds it, and
`check_context` refuses scales that the model has no room for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from captum_mllm._options import check_whole, number_tuple
from captum_mllm.models.context import context_length, raise_too_long
from captum_mllm.models.images import check_scaled
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.layout import Size
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Query

ANSWER_TOKENS = 64
# Pixels up to which an image of no more than this is put through the processor to count tokens.
_MEASURED = 2**22
# Scales that differ by less are the same.
_STEP = 1.02
_SMALLEST = 0.05


class ScaleEstimate(NamedTuple):
    r"""What one scale costs.

    Args:
        scale (float): size of the image relative to its own.
        passes (int): rows that go through the model, one for each window of an image.
        image_tokens (int): tokens of the explained images, over all passes.
        tokens (int): tokens of each pass, those of the prompt and the answer included.
        memory (int): bytes that a pass takes at least, beside the weights.
    """

    scale: float
    passes: int
    image_tokens: int
    tokens: int
    memory: int


@torch.no_grad()
def estimate(
    mllm: MLLM,
    inp: ImageTextInput,
    scales: Sequence[float] = (1.0,),
    answer_tokens: int = ANSWER_TOKENS,
) -> tuple[ScaleEstimate, ...]:
    r"""Tokens, passes and memory of an explanation at each scale, without a pass.

    For families whose grid follows the image (Qwen-VL, GLM-4V) the tokens are those that the
    processor states. For all others the processor prepares a blank image of the same shape, at most
    of 4 megapixels, so that the count may be off by some tokens for larger ones.

    Args:
        mllm (MLLM): the model.
        inp (ImageTextInput): the images and the question.
        scales (Sequence[float]): scales of the explained images. Default: (1.0,)
        answer_tokens (int): tokens of the answer. Default: 64

    Returns:
        tuple[ScaleEstimate, ...]: one for each scale.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.models.budget import estimate
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.new("RGB", (224, 224)), "Describe the image.")
        >>> [each.image_tokens for each in estimate(mllm, inp, scales=(0.5, 1.0, 2.0))]
        [49, 196, 784]
    """
    _, query = open_query(mllm.backbone, inp)
    return _estimates(mllm, query, number_tuple("scales", scales), answer_tokens)


def fit_scales(
    mllm: MLLM,
    inp: ImageTextInput,
    scales: Sequence[float],
    max_image_tokens: int | None = None,
    answer_tokens: int = ANSWER_TOKENS,
) -> tuple[float, ...]:
    r"""The scales, each lowered to the largest that fits; equal ones are left out.

    Args:
        mllm (MLLM): the model.
        inp (ImageTextInput): the images and the question.
        scales (Sequence[float]): scales of the explained images.
        max_image_tokens (int, optional): tokens of the explained images at one scale, at most.
            Default: None, as many as the context of the model holds.
        answer_tokens (int): tokens of the answer. Default: 64

    Returns:
        tuple[float, ...]: in the same order, with a warning where one was lowered.

    Raises:
        TypeError: for a limit that is not an integer.
        ValueError: if no scale fits, or the limit is below 1.
    """
    _, query = open_query(mllm.backbone, inp)
    scales = number_tuple("scales", scales)
    return fitting_scales(mllm, query, scales, max_image_tokens, answer_tokens)


@torch.no_grad()
def fitting_scales(
    mllm: MLLM,
    query: Query,
    scales: Sequence[float],
    max_image_tokens: int | None,
    answer_tokens: int,
) -> tuple[float, ...]:
    r"""As :func:`fit_scales`, for a query."""
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    context = context_length(mllm.model.config)

    def fits(scale: float) -> bool:
        try:
            (found,) = _estimates(mllm, query, (scale,), answer_tokens)
        except ValueError:
            # At a scale this small the image has no token.
            return False
        cheap = max_image_tokens is None or found.image_tokens <= max_image_tokens
        return cheap and (context is None or found.tokens <= context)

    too_large = [scale for scale in scales if not fits(scale)]
    if not too_large:
        return tuple(scales)
    high = min(too_large)
    low = max((scale for scale in scales if scale < high), default=_SMALLEST)
    if low == _SMALLEST:
        low = next((high / 2**n for n in range(1, 8) if fits(high / 2**n)), 0.0)
    if low == 0:
        raise ValueError(
            f"the image and the text do not fit {_limits(context, max_image_tokens)} at any scale; "
            "shorten the prompt, or make the image smaller"
        )
    while high > low * _STEP:
        middle = math.sqrt(high * low)
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Two digits are enough for people; more would be shown with the method.
    low = math.floor(low * 100) / 100 or low
    fitting = tuple(dict.fromkeys(min(scale, low) for scale in scales))
    warnings.warn(
        f"scales {tuple(too_large)} make more tokens than fit "
        f"{_limits(context, max_image_tokens)}; the scales are now "
        f"{tuple(round(scale, 2) for scale in fitting)}",
        stacklevel=2,
    )
    return fitting


@torch.no_grad()
def check_context(
    mllm: MLLM, query: Query, scales: Sequence[float], answer_tokens: int = ANSWER_TOKENS
) -> None:
    r"""Refuse scales at which a pass is longer than the context of the model.

    Args:
        mllm (MLLM): the model.
        query (Query): the question.
        scales (Sequence[float]): scales of the explained images.
        answer_tokens (int): tokens of the answer. Default: 64

    Raises:
        ValueError: which names the scales, their tokens, and what to do.
    """
    context = context_length(mllm.model.config)
    if context is None:
        return
    (native,) = _estimates(mllm, query, (1.0,), answer_tokens)
    # Tokens grow with the area of the image, up to what a grid rounds.
    largest = native.tokens + 2 * native.image_tokens * max(max(scales), 1) ** 2
    if largest <= context:
        return
    too_long = [
        each for each in _estimates(mllm, query, scales, answer_tokens) if each.tokens > context
    ]
    if too_long:
        raise_too_long([(each.scale, each.tokens) for each in too_long], context)


def _estimates(
    mllm: MLLM, query: Query, scales: Sequence[float], answer_tokens: int
) -> tuple[ScaleEstimate, ...]:
    at_native = _count(mllm, query, 1.0)
    context = _n_text(mllm, query)
    estimates = []
    for scale in scales:
        passes, image_tokens = at_native if scale == 1 else _count(mllm, query, scale)
        tokens = math.ceil(image_tokens / passes) + context + answer_tokens
        memory = _memory(mllm, passes, tokens, image_tokens)
        estimates.append(ScaleEstimate(float(scale), passes, image_tokens, tokens, memory))
    return tuple(estimates)


def _limits(context: int | None, max_image_tokens: int | None) -> str:
    limits = [] if context is None else [f"the model's context of {context} tokens"]
    if max_image_tokens is not None:
        limits.append(f"max_image_tokens={max_image_tokens}")
    return " and ".join(limits)


def _count(mllm: MLLM, query: Query, scale: float) -> tuple[int, int]:
    """Passes and tokens of the explained images at a scale."""
    natives = [query.native[index] for index in query.explained]
    sizes = [_scaled(native, scale) for native in natives]
    for size in sizes:
        check_scaled(size, scale)
    vision, images = mllm.model.config.vision_config, mllm.processor.image_processor
    merge = getattr(vision, "spatial_merge_size", None)
    counts = hasattr(images, "get_number_of_image_patches")
    if (
        query.clip is None
        and merge is not None
        and counts
        and getattr(images, "merge_size", None) == merge
    ):
        n_tokens = 0
        for size, native in zip(sizes, natives):
            options = mllm.geometry.processor_options(size, native)
            limits = {**dict(images.size), **options.get("size", {})}
            known = {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
            n_tokens += images.get_number_of_image_patches(*size, known) // merge**2
        return 1, n_tokens
    shrinks = [
        min(math.sqrt(_MEASURED / max(size[0] * size[1], native[0] * native[1])), 1.0)
        for size, native in zip(sizes, natives)
    ]
    blanks = [_blank(mllm, query, _shrunk(*each)) for each in zip(sizes, shrinks)]
    encoding = mllm.backbone.encode(
        tuple(blanks), _at(query, [_shrunk(*each) for each in zip(natives, shrinks)]), False
    )
    return encoding.windows, sum(encoding.layouts[index].n_tokens for index in query.explained)


def _n_text(mllm: MLLM, query: Query) -> int:
    """Tokens of the prompt that are not the explained images', other images included."""
    natives = [query.native[index] for index in query.explained]
    small = [
        _shrunk(native, min(math.sqrt(_MEASURED / (native[0] * native[1])), 1.0))
        for native in natives
    ]
    encoding = mllm.backbone.encode(
        tuple(_blank(mllm, query, size) for size in small), _at(query, small), False
    )
    own = [] if encoding.crosses else query.explained
    n_image = sum(len(encoding.image_positions[index]) for index in own)
    return encoding.inputs["input_ids"].shape[1] - n_image


def _scaled(size: Size, scale: float) -> Size:
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _shrunk(size: Size, factor: float) -> Size:
    return max(round(size[0] * factor), 2), max(round(size[1] * factor), 2)


def _blank(mllm: MLLM, query: Query, size: Size) -> torch.Tensor:
    return torch.zeros(1, query.channels, *size, device=mllm.device)


def _at(query: Query, natives: Sequence[Size]) -> Query:
    """The query of explained images of other sizes."""
    sizes = list(query.native)
    for index, native in zip(query.explained, natives):
        sizes[index] = native
    return replace(query, native=tuple(sizes))


def _memory(mllm: MLLM, passes: int, tokens: int, image_tokens: int) -> int:
    """The pixels, the embeddings, and what one layer of the language model holds at a time."""
    text: Any = mllm.model.config.get_text_config()
    vision: Any = mllm.model.config.vision_config
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    merge = getattr(vision, "spatial_merge_size", 1)
    width = 4 * text.hidden_size + 2 * text.intermediate_size
    numbers = passes * tokens * width + image_tokens * 3 * (patch * merge) ** 2
    return numbers * mllm.dtype.itemsize
