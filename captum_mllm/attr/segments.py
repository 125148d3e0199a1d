"""Parts of an image that are present or absent together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.attr.resizing import resample
from captum_mllm.models.layout import Size, size_of
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.precision import full_precision

# Data sets label fewer classes than this, and use 255 for unlabelled pixels.
_LAST_LABEL = 200
SegmentsLike = tuple[int, int] | int | Tensor | np.ndarray | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Segments:
    r"""Segments of an image, which may overlap and need not cover it.

    Args:
        regions (Tensor): the region of each pixel, (H, W); within one, the same segments lie.
        members (Tensor): which segments lie over each region, bool, (R, S).
        text (str): what they are, for readers.
        grid (tuple[int, int], optional): rows and columns, where the segments are the cells of a
            grid. Default: None
    """

    regions: Tensor
    members: Tensor
    text: str
    grid: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value for each segment: (1, rows, columns) of a grid, else (S,)."""
        return (self.members.shape[1],) if self.grid is None else (1, *self.grid)

    @property
    def size(self) -> Size:
        return size_of(self.regions)

    @full_precision()
    def seen(self, present: Tensor) -> Tensor:
        r"""Which pixels are there if only some segments are.

        Args:
            present (Tensor): bool, (B, \*shape).

        Returns:
            Tensor: bool, (B, 1, H, W); False where an absent segment lies.
        """
        absent = (~present.flatten(1)).to(torch.float32)
        hidden = (absent @ self.members.to(absent).T) > 0
        return ~hidden[:, self.regions][:, None]

    @full_precision()
    def paint(self, values: Tensor) -> Tensor:
        r"""Values of segments (N, \*shape) as maps (N, 1, H, W): each pixel has the sum of those
        of its segments, and 0 without any."""
        values = values.flatten(1)
        return (values @ self.members.to(values).T)[:, self.regions][:, None]

    def resized(self, size: Size) -> Segments:
        r"""The same segments on the image at another size.

        Raises:
            ValueError: if a segment has no pixel there.
        """
        if size == self.size:
            return self
        regions = self.regions
        for axis, side in enumerate(size):
            regions = resample(regions, axis, side)
        lost = (~self.members[regions.unique()].any(0)).nonzero().flatten().tolist()
        if lost:
            raise ValueError(
                f"on an image of {size[0]} x {size[1]} pixels no pixel is left for segments "
                f"{lost[:10]}{' and others' if len(lost) > 10 else ''}; leave this scale out, or "
                "take fewer and larger segments"
            )
        return replace(self, regions=regions)


def image_segments(segments: SegmentsLike, image: Tensor) -> Segments:
    r"""
    The segments of an image, in any of the forms in which a user gives them.

    Args:
        segments (tuple[int, int], int, Tensor, ndarray or Sequence[Tensor]): rows and columns of a
            grid; a number of :func:`superpixels`; or, as :class:`captum.attr.ImageMaskInput` takes
            them, a label for each pixel, integers (H, W), or a mask (H, W) for each segment, which
            may overlap.
        image (Tensor): (1, 3, H, W) in [0, 1].

    Raises:
        TypeError: for anything else.
        ValueError: for a number below 1, more rows or columns than pixels, labels or masks of
            another size, an empty mask, and one of several levels.
        ModuleNotFoundError: for superpixels without scikit-image.
    """
    size = size_of(image)
    if isinstance(segments, (Tensor, np.ndarray)):
        return _by_labels(_labels(segments, size).to(image.device), "segments")
    if is_integer(segments):
        return _by_labels(superpixels(image, segments), "superpixels")
    given: tuple[Any, ...] = tuple(segments) if isinstance(segments, Sequence) else ()
    if len(given) == 2 and all(map(is_integer, given)):
        labels = grid_segments(size, given).to(image.device)
        text = f"a grid of {given[0]} x {given[1]}"
        return replace(_by_labels(labels, ""), text=text, grid=given)
    if given and all(isinstance(mask, (Tensor, np.ndarray)) for mask in given):
        masks = [_mask(each, size, index) for index, each in enumerate(given)]
        return _by_masks([mask.to(image.device) for mask in masks], size)
    kinds = sorted({type(each).__name__ for each in given})
    shown = f"a {type(segments).__name__} of {', '.join(kinds)}" if kinds else repr(segments)
    raise TypeError(
        f"got segments={shown}, expected (rows, columns), a number of superpixels, a label "
        "for each pixel (H, W), or a mask (H, W) for each segment"
    )


def grid_segments(size: Size, shape: tuple[int, int]) -> Tensor:
    r"""
    The cells of a grid over an image, numbered row by row. With two dimensions before them,
    ``[None, None]``, they are a ``feature_mask`` of images.

    Args:
        size (tuple[int, int]): height and width of the image, in pixels.
        shape (tuple[int, int]): rows and columns.

    Returns:
        Tensor: of shape (H, W), integers from 0.

    Raises:
        ValueError: for less than one row or column, or more than there are pixels.

    Examples::
        >>> from captum_mllm.attr import grid_segments
        >>> grid_segments((2, 5), (1, 2))
        tensor([[0, 0, 0, 1, 1],
                [0, 0, 0, 1, 1]])
    """
    if not all(1 <= cells <= pixels for cells, pixels in zip(shape, size)):
        raise ValueError(
            f"got a grid of {shape[0]} x {shape[1]} segments, expected at least 1 and at most one "
            f"for each of the {size[0]} x {size[1]} pixels"
        )
    row, column = (torch.arange(pixels) * cells // pixels for pixels, cells in zip(size, shape))
    return row[:, None] * shape[1] + column


def superpixels(image: Tensor, n_segments: int = 50, compactness: float = 10.0) -> Tensor:
    r"""
    Segments of similar colour. With two dimensions before them, ``[None, None]``, they are a
    ``feature_mask`` of the image.

    By simple linear iterative clustering (SLIC, Achanta et al., IEEE TPAMI 2012), as scikit-image
    has it.

    Args:
        image (Tensor): (1, 3, H, W) or (3, H, W) in [0, 1].
        n_segments (int): about how many to make. Default: 50
        compactness (float): the more, the squarer; see :func:`skimage.segmentation.slic`.
            Default: 10.0

    Returns:
        Tensor: of shape (H, W), integers from 0.

    Raises:
        ModuleNotFoundError: without scikit-image.
        ValueError: for less than one segment.

    Examples::
        >>> import torch
        >>> from captum_mllm.attr import superpixels
        >>> image = torch.zeros(3, 8, 16)
        >>> image[0, :, 8:] = 1
        >>> superpixels(image, n_segments=2)[0].tolist()
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    if n_segments < 1:
        raise ValueError(f"got {n_segments} superpixels, expected at least 1")
    try:
        from skimage.segmentation import slic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "superpixels need scikit-image: pip install scikit-image; or give segments as a grid, "
            "(rows, columns)"
        ) from error
    # Of a group of frames the mean.
    frames = (image[0] if image.ndim == 4 else image).unflatten(0, (-1, 3))
    pixels = np.asarray(to_pil(frames.mean(0)))
    labels = slic(pixels, n_segments=n_segments, compactness=compactness, start_label=0)
    return torch.from_numpy(labels).long().to(image.device)


def _labels(given: Tensor | np.ndarray, size: Size) -> Tensor:
    """Labels as a user gives them, (H, W), int64."""
    labels = _to_tensor(given)
    if tuple(labels.shape) != size or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"got labels of shape {tuple(labels.shape)} and dtype {labels.dtype} for segments, "
            f"expected integers of the image's {size[0]} x {size[1]} pixels"
        )
    _warn_of_levels(labels)
    return labels.long()


def check_feature_mask(mask: Any) -> None:
    r"""Refuse a ``feature_mask`` of Captum that has no labels, and warn of a grey one.

    Args:
        mask (Any): a tensor of any shape and dtype, or None.

    Raises:
        TypeError: for anything else.
        ValueError: for numbers that are not whole.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"got a feature_mask of type {type(mask).__name__}, expected a tensor")
    if mask.is_floating_point() and bool((mask != mask.round()).any()):
        raise ValueError(
            "got a feature_mask of numbers that are not whole, expected a label for each pixel; "
            "threshold a soft mask, such as `(mask > 0.5).long()`"
        )
    _warn_of_levels(mask)


def _warn_of_levels(labels: Tensor) -> None:
    """Warn where labels of 8 bits may be the levels of a grey mask."""
    if labels.dtype != torch.uint8:
        return
    levels = labels.unique()
    if len(levels) > 2 and levels[-1] > _LAST_LABEL:
        warnings.warn(
            f"each of the {len(levels)} levels of the 8-bit segments, up to {int(levels[-1])}, is "
            "taken for a segment of its own; give `[mask > 127]` if they are a grey mask, or "
            "labels as int64 if they are labels",
            stacklevel=3,
        )


def _mask(given: Tensor | np.ndarray, size: Size, index: int) -> Tensor:
    """A mask as a user gives it, (H, W), bool."""
    mask = _to_tensor(given)
    if tuple(mask.shape) != size or not mask.any():
        raise ValueError(
            f"got a mask of shape {tuple(mask.shape)} with {int(mask.count_nonzero())} pixels "
            f"for segment {index}, expected one of the image's {size[0]} x {size[1]} pixels "
            "that is not empty"
        )
    if len(levels := mask[mask != 0].unique()) > 1:
        raise ValueError(
            f"got a mask of {len(levels)} levels other than 0 for segment {index}, "
            "expected one; threshold it, such as `mask > 127` for 8 bits or `mask > 0.5`"
        )
    return mask.bool()


def _to_tensor(given: Tensor | np.ndarray) -> Tensor:
    """A tensor of what may be of any byte order and strides."""
    if isinstance(given, Tensor):
        return given
    if given.dtype.kind not in "buif":
        raise TypeError(f"got segments of dtype {given.dtype}, expected integers or truth values")
    dtype = given.dtype.newbyteorder("=")
    if dtype.kind in "ui" and dtype != np.uint8:
        dtype = np.dtype(np.int64)
    return torch.from_numpy(np.array(given, dtype=dtype))


def _by_labels(labels: Tensor, text: str) -> Segments:
    found, regions = labels.unique(return_inverse=True)
    members = torch.eye(len(found), dtype=torch.bool, device=labels.device)
    return Segments(regions, members, f"{len(found)} {text}")


def _by_masks(masks: Sequence[Tensor], size: Size) -> Segments:
    columns = torch.stack([mask.flatten() for mask in masks], dim=1)
    regions = torch.zeros(len(columns), dtype=torch.long, device=columns.device)
    # Numbers are told apart much faster than rows.
    for part in columns.split(32, dim=1):
        bits = torch.arange(part.shape[1], device=columns.device)
        code = (part.long() << bits).sum(1)
        regions = (regions << 32 | code).unique(return_inverse=True)[1]
    members = columns.new_empty(int(regions.max()) + 1, len(masks))
    members[regions] = columns
    return Segments(regions.reshape(size), members, f"{len(masks)} segments")
