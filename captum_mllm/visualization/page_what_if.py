"""``WhatIfView`` and ``HiddenWord``, what the page shows of a hidden region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_LONGEST_SIDE = 128


class HiddenWord(NamedTuple):
    r"""
    A word before and after its region was hidden.

    Args:
        tokens (Sequence[int]): the answer tokens of the word.
        before (float): its probability, in [0, 1].
        after (float): the same with the region hidden.
        elsewhere (float): the same with another region hidden.
        says (str or None): what the model says instead with the region hidden. None: it does not
            say something else.
        says_elsewhere (str or None): the same with another region hidden.
    """

    tokens: Sequence[int]
    before: float
    after: float
    elsewhere: float
    says: str | None
    says_elsewhere: str | None


@dataclass(frozen=True, eq=False)
class WhatIfView:
    r"""
    What the model says without a region of an image.

    Args:
        removed (str): the words whose region was hidden.
        place (int): which of the explained images has it.
        region (np.ndarray): the hidden pixels, bool, of shape (H, W).
        control (np.ndarray): those of another region of the same area, bool, of shape (H, W).
        words (Sequence[HiddenWord]): the words that were asked for.
        answer (str): what the model then answers; empty where it was not asked. Default: ""
        in_image (bool): whether the image was changed; else nothing could attend to the region.
            Default: True
    """

    removed: str
    place: int
    region: np.ndarray
    control: np.ndarray
    words: Sequence[HiddenWord]
    answer: str = ""
    in_image: bool = True


def what_if_data(
    views: Sequence[WhatIfView], n_tokens: int, n_images: int
) -> dict[str, list[dict[str, Any]] | None]:
    r"""
    Check what-ifs of ``n_tokens`` answer tokens and ``n_images`` explained images, and pack them
    for the page's script.

    Raises:
        ValueError: If they do not fit the answer or the images, or a number is out of range.
    """
    packed = []
    for view in views:
        for word in view.words:
            values = (word.before, word.after, word.elsewhere)
            tokens_fit = word.tokens and all(0 <= token < n_tokens for token in word.tokens)
            if not tokens_fit or not all(0 <= value <= 1 + 1e-6 for value in values):
                raise ValueError(
                    f"got {word}, expected probabilities and tokens from 0 to {n_tokens - 1}"
                )
        same = view.region.shape == view.control.shape and view.region.ndim == 2
        if not same or not 0 <= view.place < n_images:
            raise ValueError(
                f"got regions of shape {view.region.shape} and {view.control.shape} in image "
                f"{view.place}, expected one shape (H, W) and one of {n_images} image(s)"
            )
        size, region = outline(view.region)
        packed.append(
            {
                "removed": view.removed,
                "place": view.place,
                "area": float(view.region.mean()),
                "size": size,
                "region": region,
                "control": outline(view.control)[1],
                "words": [{**word._asdict(), "tokens": list(word.tokens)} for word in view.words],
                "answer": view.answer,
                "in_image": view.in_image,
            }
        )
    return {"what_ifs": packed or None}


def outline(region: np.ndarray) -> tuple[tuple[int, int], str]:
    r"""
    The border of a region as a path of SVG, on a grid of at most 128 cells along a side.

    Args:
        region (np.ndarray): bool, of shape (H, W).

    Returns:
        tuple[tuple[int, int], str]: Width and height of the grid, and the path: a cell belongs to
        the region if a pixel of it does.

    Examples::

        >>> outline(np.array([[False, True, True], [False, False, False]]))
        ((3, 2), 'M1 0h2M1 1h2M1 0v1M3 0v1')
    """
    height, width = region.shape
    share = min(1.0, _LONGEST_SIDE / max(height, width))
    size = max(round(width * share), 1), max(round(height * share), 1)
    pixels = Image.fromarray(np.where(region, 255.0, 0.0).astype(np.float32))
    cells = np.asarray(pixels.resize(size, Image.Resampling.BOX)) > 0
    across = _runs(cells, "M{start} {line}h{length}")
    return size, across + _runs(cells.T, "M{line} {start}v{length}")


def _runs(cells: np.ndarray, step: str) -> str:
    """The borders between neighbouring rows of cells, each as long as it goes straight on."""
    borders = np.diff(np.pad(cells.astype(np.int8), ((1, 1), (0, 0))), axis=0) != 0
    ends = np.diff(np.pad(borders.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(ends > 0), np.argwhere(ends < 0)
    return "".join(
        step.format(line=line, start=start, length=stop - start)
        for (line, start), (_, stop) in zip(starts.tolist(), stops.tolist())
    )
