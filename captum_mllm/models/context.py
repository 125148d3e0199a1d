"""`context_length` is the number of tokens a model was made for; longer passes are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from captum_mllm.models.layout import Size


def context_length(config: Any) -> int | None:
    r"""How many tokens a model was made for; None where its configuration does not tell."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_length(config: Any, tokens: int, size: Size, native: Size) -> None:
    r"""Refuse a pass with an enlarged image that is longer than the context of the model.

    Args:
        config (PretrainedConfig): the model's configuration.
        tokens (int): tokens of the pass.
        size (tuple[int, int]): height and width of the image.
        native (tuple[int, int]): height and width at which the user gave it.

    Raises:
        ValueError: which names the scale, the tokens, and what to do.
    """
    context = context_length(config)
    # As it is given, an image is the user's own affair, as in any use of the model.
    if context is not None and tokens > context and size[0] * size[1] > native[0] * native[1]:
        scale = (size[0] * size[1] / (native[0] * native[1])) ** 0.5
        raise_too_long([(round(scale, 2), tokens)], context)


def raise_too_long(scales: Sequence[tuple[float, int]], context: int) -> NoReturn:
    r"""Say which scales need how many tokens; arguments as (scale, tokens) and the context.

    Raises:
        ValueError: always.
    """
    named = " and ".join(f"{tokens} tokens at scale {scale:g}" for scale, tokens in scales)
    raise ValueError(
        f"the image and the text make {named}, but the model's context has {context}; leave out "
        "large scales (scales=...), have them lowered to fit (max_image_tokens=...), or give a "
        "smaller image"
    )
