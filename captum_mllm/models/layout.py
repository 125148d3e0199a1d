"""``Layout`` tells where each image token lies in the image."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch
from torch import Tensor

from captum_mllm.models.precision import full_precision

Box = tuple[float, float, float, float]
Size = tuple[int, int]

# Bytes of interpolation weights that are kept, some hundred of usual size.
KEPT_BYTES = 2**23


def size_of(images: Tensor) -> Size:
    """Height and width of images (..., H, W)."""
    height, width = images.shape[-2:]
    return height, width


def square_around(size: Size) -> Box:
    """The square in whose middle an image lies."""
    height, width = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    return (-left, -top, side - left, side - top)


@dataclass(frozen=True)
class Piece:
    r"""A grid of image tokens, in raster order, that covers one box of the image.

    Args:
        rows (int): rows of tokens.
        columns (int): columns of tokens.
        box (tuple[float, float, float, float]): left, top, right and bottom edge of the part that
            the grid shows, in pixels of the original image. It may reach beyond the image
            where the model sees padding.
    """

    rows: int
    columns: int
    box: Box

    @property
    def n_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def density(self) -> float:
        """Tokens per pixel of the image."""
        left, top, right, bottom = self.box
        return self.n_tokens / ((right - left) * (bottom - top))


@dataclass(frozen=True)
class Layout:
    r"""The pieces of one image, in the order of its image tokens.

    A fixed square encoder has one piece, an encoder that cuts the image into tiles has one for
    each tile and one for the thumbnail. Pieces may overlap, and need not cover the image.

    Args:
        size (tuple[int, int]): height and width of the image in pixels.
        pieces (tuple[Piece, ...]): the pieces.

    Examples::
        >>> import torch
        >>> layout = Layout((2, 4), (Piece(1, 2, (0, 0, 4, 2)),))
        >>> layout.paint(torch.tensor([1.0, 2.0]))
        tensor([[1., 2.]])
        >>> layout.paint(torch.tensor([1.0, 2.0]), size=(1, 4))
        tensor([[1.0000, 1.2500, 1.7500, 2.0000]])
    """

    size: Size
    pieces: tuple[Piece, ...]

    @cached_property
    def n_tokens(self) -> int:
        return sum(piece.n_tokens for piece in self.pieces)

    @cached_property
    def grid(self) -> Size:
        """Rows and columns of a map of the whole image as fine as its finest piece.

        Where the tokens of that piece do not fall on the cells of such a map it is twice as fine,
        so that little is lost between them.
        """
        height, width = self.size
        finest = max(self.pieces, key=lambda piece: piece.density)
        left, top, right, bottom = finest.box
        rows = _cells(finest.rows, top, bottom, height)
        columns = _cells(finest.columns, left, right, width)
        return rows, columns

    @full_precision()
    def paint(self, values: Tensor, size: Size | None = None) -> Tensor:
        r"""Lay a value for each token out as a map of the whole image.

        Each piece is enlarged into its box by bilinear interpolation. Where pieces overlap their
        mean counts, each weighed by its tokens per area, so that a thumbnail does not blur what
        its tiles tell apart; where none reaches (see :meth:`coverage`) the map is zero. A single
        piece that covers the image is reproduced unchanged when ``size`` is its own.

        Args:
            values (Tensor): one value for each image token, shape (..., n_tokens).
            size (tuple[int, int], optional): rows and columns of the map.
                Default: ``grid``, as fine as the finest piece.

        Returns:
            Tensor: maps of shape ``(..., *size)``, of the dtype and on the device of ``values``.

        Raises:
            ValueError: if the last dimension of ``values`` is not ``n_tokens``.
        """
        if values.shape[-1] != self.n_tokens:
            raise ValueError(
                f"got {values.shape[-1]} values, expected {self.n_tokens}, one for each image token"
            )
        rows, columns = size or self.grid
        dtype = torch.promote_types(values.dtype, torch.float32)
        painted = values.new_zeros((*values.shape[:-1], rows, columns), dtype=dtype)
        cover = values.new_zeros((rows, columns), dtype=dtype)
        parts = values.to(dtype).split([piece.n_tokens for piece in self.pieces], dim=-1)
        for piece, part in zip(self.pieces, parts):
            down, across = (weights.to(painted) for weights in self._weights(piece, rows, columns))
            grid = part.unflatten(-1, (piece.rows, piece.columns))
            weight = piece.density / self.pieces[0].density
            painted = painted + weight * (down @ grid @ across.mT)
            cover = cover + weight * (down.sum(1)[:, None] * across.sum(1))
        return (painted / torch.where(cover > 0, cover, 1.0)).to(values.dtype)

    def coverage(self, size: Size | None = None) -> Tensor:
        r"""Which cells of a map of the whole image any image token sees.

        A map is zero elsewhere. That does not mean that these parts are irrelevant: they were cut
        away before the model saw the image.

        Args:
            size (tuple[int, int], optional): rows and columns of the map. Default: ``grid``.

        Returns:
            Tensor: bool, on the CPU, of shape ``size``.

        Examples::
            >>> Layout((2, 4), (Piece(2, 2, (1, 0, 3, 2)),)).coverage()
            tensor([[False,  True,  True, False],
                    [False,  True,  True, False]])
        """
        covered = torch.zeros(size or self.grid, dtype=torch.bool)
        for piece in self.pieces:
            down, across = self._weights(piece, *covered.shape)
            covered |= (down.sum(1) > 0)[:, None] & (across.sum(1) > 0)
        return covered

    def _weights(self, piece: Piece, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """How a piece's rows and columns are sampled at those of the map."""
        left, top, right, bottom = piece.box
        return (
            _interpolation(rows, piece.rows, top, bottom, self.size[0]),
            _interpolation(columns, piece.columns, left, right, self.size[1]),
        )


def _cells(tokens: int, start: float, end: float, length: int) -> int:
    """Cells of a map along a side, one for each token if that puts tokens on cells."""
    pitch = (end - start) / tokens
    cells = length / pitch
    aligned = all(abs(place - round(place)) < 1e-6 for place in (cells, start / pitch))
    return round(cells) if aligned else max(round(2 * cells), 1)


_kept: OrderedDict[tuple[float, ...], Tensor] = OrderedDict()
_kept_lock = Lock()


def _interpolation(cells: int, tokens: int, start: float, end: float, length: int) -> Tensor:
    """Weights (cells, tokens) as of :func:`_new_interpolation`; those used last are kept."""
    key = (cells, tokens, start, end, length)
    with _kept_lock:
        known = _kept.get(key)
        if known is not None:
            _kept.move_to_end(key)
            return known
    weights = _new_interpolation(*key)
    with _kept_lock:
        _kept[key] = weights
        while sum(kept.nbytes for kept in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)
    return weights


@torch.inference_mode(False)
def _new_interpolation(cells: int, tokens: int, start: float, end: float, length: int) -> Tensor:
    """Weights (cells, tokens) that sample a row of tokens, laid from start to end, at each cell.

    A row is all zero where the centre of its cell lies outside of the piece, and sums to one
    elsewhere.
    """
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * length / cells
    # Rounding keeps a grid sampled at its own centres exact.
    position = ((centres - start) * tokens / (end - start) - 0.5).mul(2**20).round().div(2**20)
    inside = (centres >= start) & (centres <= end)
    position = position.clamp(0, tokens - 1)
    lower = position.floor()
    fraction = position - lower
    weights = torch.zeros(cells, tokens, dtype=torch.float64)
    index = torch.arange(cells)
    weights[index, lower.long()] = 1 - fraction
    weights[index, (lower.long() + 1).clamp(max=tokens - 1)] += fraction
    return weights * inside[:, None]
