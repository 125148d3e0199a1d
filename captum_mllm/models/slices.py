"""Encoders that see the whole image and its parts on grids of their own: Slices, ThumbnailTiles."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.layout import Layout, Piece, Size
from captum_mllm.models.pixels import normalize, pad_patches, resize


def grid_of_parts(size: Size, grid: Size, rows: int, columns: int) -> tuple[Piece, ...]:
    """The pieces of an image that is cut into equal parts, each with a grid of tokens."""
    down, across = size[0] / rows, size[1] / columns
    return tuple(
        Piece(*grid, (column * across, row * down, (column + 1) * across, (row + 1) * down))
        for row in range(rows)
        for column in range(columns)
    )


def cut_parts(images: Tensor, rows: int, columns: int) -> list[Tensor]:
    """The same parts of (B, 3, H, W)."""
    return [part for strip in images.chunk(rows, 2) for part in strip.chunk(columns, 3)]


class Slices(Geometry):
    r"""The whole image on a grid that keeps its shape, then slices of it: MiniCPM-V.

    Larger images are cut into as many slices as are allowed. The limit moves along with the scale,
    and so does the area of the whole image where neither size is cut.
    """

    @property
    def merge(self) -> int:
        """Patches along a side of a token."""
        return 2 if self.option("downsample_mode") == "4x" else 4

    def check_options(self) -> None:
        super().check_options()
        patch = self.option("patch_size")
        if patch != self.vision.patch_size:
            raise ValueError(
                f"the {self.kind} processor has patch_size={patch}, the model's vision tower "
                f"{self.vision.patch_size}; is it the processor of another model?"
            )
        own = getattr(self.config, "downsample_mode", self.option("downsample_mode"))
        if self.option("downsample_mode") != own:
            raise ValueError(
                f"the {self.kind} processor has "
                f"downsample_mode={self.option('downsample_mode')!r}, "
                f"the model {own!r}; expected the same"
            )

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        area, before = size[0] * size[1], native[0] * native[1]
        side = self.option("scale_resolution")
        if not self.option("slice_mode") or max(area, before) <= side**2:
            # An image that is not cut is seen at this area whatever its size.
            return {"scale_resolution": max(round(side * math.sqrt(area / before)), 1)}
        return {"max_slice_nums": max(round(self.option("max_slice_nums") * area / before), 1)}

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        first = [0, *accumulate(int(count) for count in inputs["num_patches_per_image"])][index]
        grids = [
            (int(rows) // self.merge, int(columns) // self.merge)
            for rows, columns in inputs["target_sizes"][first : first + 2]
        ]
        whole = Piece(*grids[0], (0, 0, size[1], size[0]))
        rows, columns = (int(count) for count in inputs["grids"][index])
        slices = grid_of_parts(size, grids[1], rows, columns) if rows else ()
        return Layout(size, (whole, *slices))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        whole, *slices = layout.pieces
        parts = [resize(images, self._pixels(whole), self.option("resample"))]
        if slices:
            rows = len({piece.box[1] for piece in slices})
            columns = len(slices) // rows
            down, across = self._pixels(slices[0])
            fine = resize(images, (rows * down, columns * across), self.option("resample"))
            parts += cut_parts(fine, rows, columns)
        return torch.cat([self._patches(normalize(part, self.option)) for part in parts], -1)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        # All patches of a batch beside each other.
        return torch.cat(list(torch.cat(parts, -1)), -1)[None]

    def _pixels(self, piece: Piece) -> Size:
        cell = self.option("patch_size") * self.merge
        return piece.rows * cell, piece.columns * cell

    def _patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, p, patches * p)."""
        return images.unflatten(2, (-1, self.option("patch_size"))).transpose(2, 3).flatten(3)


class ThumbnailTiles(Geometry):
    r"""A grid that follows the image, or square tiles and then such a grid: LFM2-VL.

    Large images are cut into tiles. The limits on tokens and tiles move along with the scale.
    """

    @property
    def cell(self) -> int:
        """Pixels of a token along a side."""
        return self.option("encoder_patch_size") * self.option("downsample_factor")

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        zoom = (size[0] * size[1]) / (native[0] * native[1])
        names = ("min_image_tokens", "max_image_tokens", "max_tiles")
        options = {name: max(round(self.option(name) * zoom), 1) for name in names}
        options["max_tiles"] = max(options["max_tiles"], self.option("min_tiles"))
        return options

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        rows, columns = (int(inputs[name][index]) for name in ("image_rows", "image_cols"))
        grid = [int(length) // self.cell for length in inputs["image_sizes"][index]]
        whole = Piece(grid[0], grid[1], (0, 0, size[1], size[0]))
        if rows * columns == 1:
            return Layout(size, (whole,))
        side = self.option("tile_size") // self.cell
        tiles = grid_of_parts(size, (side, side), rows, columns)
        return Layout(size, (*tiles, whole) if self.option("use_thumbnail") else tiles)

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        pieces, resample = list(layout.pieces), self.option("resample")
        parts = []
        if len(pieces) == 1 or self.option("use_thumbnail"):
            whole = pieces.pop()
            size = (whole.rows * self.cell, whole.columns * self.cell)
            parts = [resize(images, size, resample)]
        if pieces:
            rows, tile = len({piece.box[1] for piece in pieces}), self.option("tile_size")
            columns = len(pieces) // rows
            fine = resize(images, (rows * tile, columns * tile), resample)
            parts = cut_parts(fine, rows, columns) + parts
        patches = [self._patches(normalize(part, self.option)) for part in parts]
        longest = max(part.shape[1] for part in patches)
        return torch.stack([pad_patches(part, longest) for part in patches], 1).flatten(0, 1)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        longest = max(part.shape[1] for part in parts)
        return super().join([pad_patches(part, longest) for part in parts], rows)

    def fill(self, values: Tensor, shape: torch.Size) -> Tensor:
        return pad_patches(values, shape[1])

    def _patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, patches, p * p * 3)."""
        patch = self.option("encoder_patch_size")
        blocks = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)
