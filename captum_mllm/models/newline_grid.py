"""NewlineGrid: encoders that see the whole image, then a finer grid with newline tokens."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_mllm.models.geometry import Geometry, spread_windows
from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of, square_around
from captum_mllm.models.pixels import normalize, pad, pad_square, resize


class NewlineGrid(Geometry):
    r"""The whole image in a square, then a finer grid with a newline token after each row.

    LLaVA-NeXT and LLaVA-OneVision. The image is laid in the middle of the best of some canvases,
    which is cut into squares for the encoder; what is padding is taken away from the tokens. The
    encoder's canvases are fixed by the model's configuration, so a larger image is seen through
    several windows. LLaVA-OneVision pads each of several images of a prompt to one square, with one
    newline token behind it.
    """

    required: ClassVar[dict[str, tuple[Any, ...]]] = {"do_resize": (True,), "do_pad": (True,)}

    def windows(self, size: Size, native: Size) -> list[Box]:
        return spread_windows(size, native, (0, 0, native[1], native[0]))

    def check_options(self) -> None:
        super().check_options()
        pins = [list(pin) for pin in self.option("image_grid_pinpoints")]
        own = [list(pin) for pin in self.config.image_grid_pinpoints]
        if pins != own:
            raise ValueError(
                f"the {self.kind} processor has image_grid_pinpoints={pins}, the model {own}; "
                "expected the same"
            )

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        height, width = size
        side = self._side // self.vision.patch_size
        if n_tokens == side**2 + 1:
            return Layout(size, (Piece(side, side, square_around(size)),))
        rows, columns, box = self._fine(size)
        whole = Piece(side, side, (0, 0, width, height))
        return Layout(size, (whole, Piece(rows, columns, box)))

    def drawn(self, layout: Layout, n_tokens: int) -> Tensor:
        if len(layout.pieces) == 1:
            return torch.arange(n_tokens - 1)
        whole, fine = layout.pieces
        if n_tokens != whole.n_tokens + fine.rows * (fine.columns + 1):
            return torch.empty(0, dtype=torch.long)
        places = torch.arange(fine.rows * (fine.columns + 1)).unflatten(0, (fine.rows, -1))
        places = places[:, : fine.columns].flatten() + whole.n_tokens
        return torch.cat([torch.arange(whole.n_tokens), places])

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        side, resample = self._side, self.option("resample")
        if len(layout.pieces) == 1:
            images = pad_square(images, self.option("image_mean"))
            return normalize(resize(images, (side, side), resample), self.option)[:, None]
        canvas, start, inner = self._canvas(size_of(images))
        laid = pad(resize(images, inner, resample), canvas, start)
        tiles = laid.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        whole = resize(images, (side, side), resample)
        return normalize(
            torch.cat([whole[:, None], tiles.flatten(1, 2)], 1).flatten(0, 1), self.option
        ).unflatten(0, (len(images), -1))

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        most = max(part.shape[1] for part in parts)
        parts = [
            torch.nn.functional.pad(part, (0, 0) * 3 + (0, most - part.shape[1])) for part in parts
        ]
        return super().join(parts, rows)

    @property
    def _side(self) -> int:
        return self.vision.image_size

    def _canvas(self, size: Size) -> tuple[Size, tuple[int, int], Size]:
        """The canvas's size, where the image starts on it, and the image's size there."""
        height, width = size

        def fit(pin: list[int]) -> tuple[int, int]:
            zoom = min(pin[1] / width, pin[0] / height)
            kept = int(width * zoom) * int(height * zoom)
            return min(kept, width * height), -(pin[0] * pin[1] - min(kept, width * height))

        down, across = max(self.config.image_grid_pinpoints, key=fit)
        if across / width < down / height:
            inner = (min(math.ceil(height * (across / width)), down), across)
        else:
            inner = (down, min(math.ceil(width * (down / height)), across))
        return (down, across), ((down - inner[0]) // 2, (across - inner[1]) // 2), inner

    def _fine(self, size: Size) -> tuple[int, int, Box]:
        """Rows and columns of the finer grid, and the box of the image that it shows."""
        (height, width), patch = size, self.vision.patch_size
        canvas, start, inner = self._canvas(size)
        grid = [length // patch for length in canvas]
        skipped = [0, 0]
        if width / height > grid[1] / grid[0]:
            skipped[0] = (grid[0] - int(round(height * (grid[1] / width), 7))) // 2
        else:
            skipped[1] = (grid[1] - int(round(width * (grid[0] / height), 7))) // 2
        kept = [count - 2 * skip for count, skip in zip(grid, skipped)]
        if 0 in kept:
            raise ValueError(
                f"the image of {height} x {width} pixels (height x width) is too narrow for one "
                "row of image tokens; crop it or pad it"
            )
        edges = []
        for length, shift, shown, skip, count in zip(size, start, inner, skipped, kept):
            zoom = length / shown
            edges.append(((skip * patch - shift) * zoom, ((skip + count) * patch - shift) * zoom))
        limit = getattr(self.config, "vision_aspect_ratio", "")
        if limit.startswith("anyres_max_"):
            side = self._side // patch
            ratio = math.sqrt(
                kept[0] * kept[1] / (int(limit.removeprefix("anyres_max_")) * side**2)
            )
            if ratio > 1.1:
                kept = [int(count // ratio) for count in kept]
        (top, bottom), (left, right) = edges
        return kept[0], kept[1], (left, top, right, bottom)
