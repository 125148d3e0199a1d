"""CrossTiles: tiles that the decoder sees by cross-attention, beside the text."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_mllm._transformers import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)
from captum_mllm.models.geometry import spread_windows
from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of
from captum_mllm.models.pixels import normalize, pad, resize
from captum_mllm.models.tiles import PaddedTiles, cut_tiles


class CrossTiles(PaddedTiles):
    r"""Tiles of a canvas whose states the decoder sees by cross-attention: Mllama.

    No token of the prompt stands for them. Each tile has a class token before its patches, and the
    states of tiles that an image does not fill are masked. A larger image is seen through several
    windows.
    """

    required: ClassVar[dict[str, tuple[Any, ...]]] = {"do_resize": (True,), "do_pad": (True,)}
    crosses = True

    def windows(self, size: Size, native: Size) -> list[Box]:
        return spread_windows(size, native, (0, 0, native[1], native[0]))

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        return {}

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        rows, columns = self._arrangement(size, inputs, index)
        canvas = self._canvas(size, (rows, columns))
        down, across = (
            length / count / self._patches for length, count in zip(canvas, (rows, columns))
        )
        # Patches of padding are left out: beside a window there may be more of the image.
        heights = [self._filled(size[0], row, down) for row in range(rows)]
        widths = [self._filled(size[1], column, across) for column in range(columns)]
        pieces = []
        for row, tall in enumerate(heights):
            for column, wide in enumerate(widths):
                x, y = column * self._patches * across, row * self._patches * down
                pieces.append(Piece(tall, wide, (x, y, x + wide * across, y + tall * down)))
        return Layout(size, tuple(pieces))

    def drawn(self, layout: Layout, n_tokens: int) -> Tensor:
        return torch.arange(layout.n_tokens)

    def positions(self, placeholders: Tensor, layout: Layout, index: int) -> Tensor:
        patches, first = self._patches**2, index * self._most
        # Each tile has a class token first.
        grid = torch.arange(1, patches + 1).unflatten(0, (self._patches, -1))
        found = [
            grid[: piece.rows, : piece.columns].flatten() + (first + tile) * (patches + 1)
            for tile, piece in enumerate(layout.pieces)
        ]
        return torch.cat(found)

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        tile = self._tile
        rows = len({piece.box[1] for piece in layout.pieces})
        canvas = (rows * tile, len(layout.pieces) // rows * tile)
        laid = resize(images, self._inner(size_of(images), canvas), self.option("resample"))
        tiles = cut_tiles(pad(laid, canvas, (0, 0)), tile)
        values = normalize(tiles.flatten(0, 1), self.option).unflatten(0, tiles.shape[:2])
        missing = self._most - len(layout.pieces)
        return torch.nn.functional.pad(values, (0, 0) * 3 + (0, missing))[:, None]

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        return torch.cat(parts, dim=1)

    def visible(self, ids: Tensor, shown: Tensor) -> Tensor:
        r"""Which tiles each token sees, (B, S, images, tiles).

        Args:
            ids (Tensor): the tokens, (B, S).
            shown (Tensor): which tiles each image fills, (B, images, tiles).
        """
        counts = shown.sum(-1).tolist()
        seen = [
            get_cross_attention_token_mask(row, self.config.image_token_id) for row in ids.tolist()
        ]
        mask = convert_sparse_cross_attention_mask_to_dense(
            seen, counts, max_num_tiles=shown.shape[-1], length=ids.shape[1]
        )
        return torch.as_tensor(mask, device=ids.device)

    @property
    def _patches(self) -> int:
        """Patches of a tile along a side."""
        return self.vision.image_size // self.vision.patch_size

    def _filled(self, length: int, tile: int, pitch: float) -> int:
        """Patches of a tile along a side that show a part of the image, at least one."""
        shown = math.ceil(length / pitch - tile * self._patches - 1e-6)
        return min(max(shown, 1), self._patches)

    @property
    def _most(self) -> int:
        """How many tiles each image has, those that it does not fill among them."""
        return self.option("max_image_tiles")

    def _arrangement(self, size: Size, inputs: dict[str, Any], index: int) -> Size:
        most = range(1, self._most + 1)
        grids = [(rows, columns) for rows in most for columns in most if rows * columns <= most[-1]]
        return grids[int(inputs["aspect_ratio_ids"][0, index]) - 1]
