"""What a method is asked for: segments of the images, and words beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.attr.base import text_weigher
from captum_mllm.attr.segments import Segments, SegmentsLike, image_segments

_TEXTS = {"prompt": "the words of the prompt", "earlier": "the earlier words"}


@dataclass(frozen=True, eq=False)
class Features:
    r"""What a method is asked for beside the pixels.

    Args:
        segments (tuple[Segments, ...], optional): of each image. Default: None, the method takes
            the pixels.
        words (str, optional): ``"prompt"`` for the words of the question as features too,
            ``"earlier"`` for those of the answer as well. Default: None, neither.
    """

    segments: tuple[Segments, ...] | None = None
    words: str | None = None

    @property
    def text(self) -> str:
        """What follows the name of the method where the features are named."""
        parts = list(dict.fromkeys(segments.text for segments in self.segments or ()))
        parts += [] if self.words is None else [_TEXTS[self.words]]
        return f" over {' and '.join(parts)}" if parts else ""


def find_features(
    method: Attribution,
    images: tuple[Tensor, ...],
    segments: SegmentsLike | Sequence[SegmentsLike] | None,
    words: str | None,
) -> Features:
    r"""The features that a user asks for, see :meth:`MLLMAttribution.attribute`.

    Raises:
        TypeError: for something that is not segments.
        ValueError: for unknown words, words for a method that weighs them by itself, and segments
            that do not fit the images or their number.
    """
    if words is not None and words not in _TEXTS:
        raise ValueError(
            f"words={words!r}, expected 'prompt' for the words of the question, 'earlier' for "
            "those of the answer as well, or None"
        )
    own = text_weigher(method)
    if words is not None and own is not None:
        raise ValueError(
            f"got words={words!r}, but {own.get_name()} weighs the earlier words by itself; "
            "leave it out"
        )
    if segments is None:
        return Features(words=words)
    words = words or ("prompt" if own is None else None)
    each = for_each_image(segments, len(images))
    return Features(tuple(map(image_segments, each, images)), words)


def for_each_image(segments: Any, count: int) -> list[SegmentsLike]:
    r"""The segments of each image, where a grid or a number may be given for all of them.

    Raises:
        ValueError: for segments of another number of images.
    """
    if count == 1:
        return [segments]
    is_grid = isinstance(segments, tuple) and len(segments) == 2 and all(map(is_integer, segments))
    if is_grid or is_integer(segments):
        return [segments] * count
    given = list(segments) if isinstance(segments, (list, tuple)) else [segments]
    if len(given) != count:
        raise ValueError(
            f"got segments of {len(given)} image(s), expected {count}: a list with an entry for "
            "each explained image, or a grid or a number for all"
        )
    return given


def split_baselines(baselines: Any) -> tuple[Any, Any]:
    r"""The baseline of the images and that of the words, of which a pair is given or the first.

    Raises:
        ValueError: for a tuple that is not a pair.
    """
    if not isinstance(baselines, tuple):
        return baselines, None
    if len(baselines) != 2:
        raise ValueError(
            f"got {len(baselines)} baselines, expected (image, words), or that of the image"
        )
    return baselines


def image_baselines(baseline: Any, count: int) -> tuple[Any, ...]:
    r"""The baseline of each image: a list has one for each, all else is for all of them.

    Raises:
        ValueError: for a list of another length.
    """
    if not isinstance(baseline, list):
        return (baseline,) * count
    if len(baseline) != count:
        raise ValueError(f"got {len(baseline)} baselines of images, expected {count}")
    return tuple(baseline)


def to_tokens(values: Tensor, word_of_token: Tensor, n_tokens: int) -> Tensor:
    r"""Values of words for the last N of all tokens (N, W), each shared by those tokens of its
    word that come before the explained one, (N, n)."""
    places = torch.arange(n_tokens, device=values.device)
    before = (places[: len(word_of_token)] < places[-len(values) :, None]).to(values)
    counts = torch.zeros_like(values).index_add_(1, word_of_token, before)
    return before * (values / counts.clamp(min=1))[:, word_of_token]


def to_earlier(values: Tensor, n_tokens: int) -> Tensor:
    r"""Weights of the first tokens (N, n) as weights of all of them, (N, n_tokens): 0 for tokens
    that were not features, and for a token itself and those after it."""
    values = F.pad(values, (0, n_tokens - values.shape[1]))
    return values.tril(n_tokens - len(values) - 1)
