"""Encoders that cut the image into square tiles: Tiles, SplitTiles, PaddedTiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_mllm.models.geometry import Geometry, spread_windows
from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of
from captum_mllm.models.pixels import normalize, pad, resize

# What decides, beside the size of a tile, how many there are.
_CUTTING = (
    "crop_to_patches",
    "min_patches",
    "max_patches",
    "use_covering_area_grid",
    "resize_to_max_canvas",
)


class Tiles(Geometry):
    r"""Square tiles in raster order, and the whole image where there is more than one tile.

    InternVL, Aya Vision, Cohere2 Vision, Ovis2. The processor may report its rows and columns of
    tiles; else they are those whose shape is nearest to the image's.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
        whole_first (bool): whether the tokens of the whole image come before those of the tiles.
            Default: False
        exact (bool): whether the processor makes as many tiles as requested by
            ``min_patches`` and ``max_patches``. Otherwise it takes what suits the image's size, up
            to ``max_patches``. Default: True
    """

    def __init__(
        self, config: Any, processor: Any, whole_first: bool = False, exact: bool = True
    ) -> None:
        super().__init__(config, processor)
        self.whole_first = whole_first
        self.exact = exact

    def check_options(self) -> None:
        super().check_options()
        if isinstance(getattr(self.media_processor, "size", None), int):
            raise ValueError(
                f"the {self.kind} processor has size={self.media_processor.size}, expected the "
                "height and the width of a tile, as in size={'height': 448, 'width': 448}"
            )
        self.check_side(self._tile)
        ratio = getattr(self.config, "downsample_ratio", None)
        if ratio is not None:
            # InternVL's tower takes any whole number of tokens.
            cell = round(self.vision.patch_size[0] / ratio)
            if self._tile % cell:
                raise ValueError(
                    f"the {self.kind} processor has size={self.size}, expected a tile of whole "
                    f"image tokens, {cell} x {cell} pixels each"
                )

    def windows(self, size: Size, native: Size) -> list[Box]:
        # Where a larger image is one tile as well, it is seen through windows.
        if self.exact or size == native or self._is_cut(size, native):
            return super().windows(size, native)
        return spread_windows(size, native, (0, 0, native[1], native[0]))

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native or not (self.exact or self.option("crop_to_patches", True)):
            return {}
        if not self.exact:
            # Large images are cut into as many tiles as are allowed: the limit moves along.
            zoom = (size[0] * size[1]) / (native[0] * native[1])
            return {"max_patches": max(round(self.option("max_patches") * zoom), 1)}
        count = self._asked(size, native)
        return {"crop_to_patches": True, "min_patches": count, "max_patches": count}

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:
        if size == native or not self.exact:
            return
        asked, came = self._asked(size, native), max(len(layout.pieces) - 1, 1)
        if came != asked:
            self._refuse_scale(f"{asked}", f"{came} tiles")

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        rows, columns = self._arrangement(size, inputs, index)
        height, width = self._canvas(size, (rows, columns))
        count = rows * columns
        side = math.isqrt(n_tokens // (count + 1 if count > 1 else 1))
        whole = Piece(side, side, (0, 0, size[1], size[0]))
        if count == 1:
            return Layout(size, (self._only(side, (0, 0, width, height), whole),))
        down, across = height / rows, width / columns
        tiles = tuple(
            Piece(
                side,
                side,
                (column * across, row * down, (column + 1) * across, (row + 1) * down),
            )
            for row in range(rows)
            for column in range(columns)
        )
        return Layout(size, (whole, *tiles) if self.whole_first else (*tiles, whole))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        parts = []
        if len(layout.pieces) > 1:
            parts.append(self._tiles(images, layout))
        tile = self._tile
        whole = resize(images, (tile, tile), self.option("resample")).unsqueeze(1)
        parts.insert(0 if self.whole_first else len(parts), whole)
        return normalize(torch.cat(parts, 1).flatten(0, 1), self.option)

    @property
    def _tile(self) -> int:
        """Pixels of a tile along a side."""
        return self.size["height"]

    def _is_cut(self, size: Size, native: Size) -> bool:
        """Whether the processor cuts an image of this size into tiles."""
        if not self.option("crop_to_patches", True):
            return False
        options = {name: self.option(name) for name in _CUTTING if name in self.accepted}
        options |= {"size": self.size, **self.processor_options(size, native)}
        made = self.media_processor([Image.new("RGB", size[::-1])], **options)
        return self._arrangement(size, made, 0) != (1, 1)

    def _only(self, side: int, box: Box, whole: Piece) -> Piece:
        """The piece of an image of one tile."""
        return whole

    def _canvas(self, size: Size, tiles: Size) -> tuple[float, float]:
        """Height and width of all tiles in pixels of the image."""
        return size

    def _tiles(self, images: Tensor, layout: Layout) -> Tensor:
        rows, columns = _rows_and_columns(layout, self.whole_first)
        size = (rows * self._tile, columns * self._tile)
        return cut_tiles(resize(images, size, self.option("resample")), self._tile)

    def _arrangement(self, size: Size, inputs: dict[str, Any], index: int) -> Size:
        """Rows and columns of tiles."""
        for name in ("grids", "aspect_ratios"):
            if name in inputs:
                rows, columns = inputs[name][index]
                return int(rows), int(columns)
        count = int(inputs["num_patches"][index])
        count = count - 1 if count > 1 else 1
        return self._grid(size, count) if self.exact else self._closest(size, count)

    def _asked(self, size: Size, native: Size) -> int:
        """How many tiles the image shall have at a scale."""
        options = {
            name: self.option(name)
            for name in ("crop_to_patches", "min_patches", "max_patches")
            if self.option(name) is not None
        }
        count = self.media_processor.get_number_of_image_patches(*native, options)
        rows, columns = self._grid(native, count - 1 if count > 1 else 1)
        zoom = math.sqrt((size[0] * size[1]) / (native[0] * native[1]))
        return max(round(rows * zoom), 1) * max(round(columns * zoom), 1)

    def _grid(self, size: Size, count: int) -> Size:
        """The rows and columns of ``count`` tiles nearest to the image's aspect ratio.

        As the image processor has it, more columns win a tie if the image is large for so many
        tiles, and more rows otherwise.
        """
        large = size[0] * size[1] > 0.5 * self._tile**2 * count
        divisors = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
        columns = min(
            reversed(divisors) if large else divisors,
            key=lambda divisor: abs(size[1] / size[0] - divisor / (count // divisor)),
        )
        return count // columns, columns

    def _closest(self, size: Size, count: int) -> Size:
        """The rows and columns of ``count`` tiles to which the image is enlarged the least."""
        grids = [
            (count // columns, columns) for columns in range(1, count + 1) if count % columns == 0
        ]
        zooms = [
            min(self._tile * own / length for own, length in zip(grid, size)) for grid in grids
        ]
        if max(zooms) < 1:
            return grids[zooms.index(max(zooms))]
        return grids[zooms.index(min(zoom for zoom in zooms if zoom >= 1))]


class SplitTiles(Tiles):
    r"""Tiles of an image whose longest edge is fixed, then the whole image: SmolVLM, Idefics 3.

    Another scale is another longest edge. Where images are not split there is one square, and a
    larger image is seen through several windows.
    """

    def check_options(self) -> None:
        super().check_options()
        _ = self.size["longest_edge"]

    def windows(self, size: Size, native: Size) -> list[Box]:
        if self.option("do_image_splitting"):
            return super().windows(size, native)
        return spread_windows(size, native, (0, 0, native[1], native[0]))

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native or not self.option("do_image_splitting"):
            return {}
        return {"size": {"longest_edge": self._longest(size, native)}}

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:
        if size == native or not self.option("do_image_splitting"):
            return
        asked = self._longest(size, native) / self._tile
        came = max(_rows_and_columns(layout, self.whole_first))
        if abs(came - asked) > 1:
            self._refuse_scale(f"{asked:.0f}", f"{came} tiles along the longest edge")

    def _longest(self, size: Size, native: Size) -> int:
        tiles = self.size["longest_edge"] / self._tile
        zoom = math.sqrt((size[0] * size[1]) / (native[0] * native[1]))
        return max(round(tiles * zoom), 1) * self._tile

    @property
    def _tile(self) -> int:
        return self._named_size("max_image_size")["longest_edge"]

    def _arrangement(self, size: Size, inputs: dict[str, Any], index: int) -> Size:
        rows, columns = (_flat(inputs[name])[index] for name in ("rows", "cols"))
        return max(int(rows), 1), max(int(columns), 1)

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        tile, resample = self._tile, self.option("resample")
        rows, columns = _rows_and_columns(layout, self.whole_first)
        longest = self.size["longest_edge"]
        if self.option("do_image_splitting") and math.ceil(longest / tile) != max(rows, columns):
            longest = max(rows, columns) * tile
        # The processor resizes to the longest edge, then to whole tiles, then the tiles to one.
        for size in (_by_longest(size_of(images), longest), (rows * tile, columns * tile)):
            images = resize(images, size, resample)
        parts = [cut_tiles(images, tile)]
        if len(layout.pieces) > 1:
            parts.append(resize(images, (tile, tile), resample)[:, None])
        return normalize(torch.cat(parts, 1).flatten(0, 1), self.option)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        return torch.cat([part.unflatten(0, (rows, -1)) for part in parts], dim=1)


class PaddedTiles(Tiles):
    """Tiles of a canvas that the image fills from its upper left corner: Llama 4."""

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        tile, resample = self._tile, self.option("resample")
        tiles = _rows_and_columns(layout, self.whole_first)
        canvas = (tiles[0] * tile, tiles[1] * tile)
        laid = resize(images, self._inner(size_of(images), canvas), resample)
        parts = [cut_tiles(pad(laid, canvas, (0, 0)), tile)]
        if len(layout.pieces) > 1:
            parts.append(resize(images, (tile, tile), resample)[:, None])
        return normalize(torch.cat(parts, 1).flatten(0, 1), self.option)

    def _only(self, side: int, box: Box, whole: Piece) -> Piece:
        return Piece(side, side, box)

    def _canvas(self, size: Size, tiles: Size) -> tuple[float, float]:
        canvas = (tiles[0] * self._tile, tiles[1] * self._tile)
        inner = self._inner(size, canvas)
        return canvas[0] * size[0] / inner[0], canvas[1] * size[1] / inner[1]

    def _inner(self, size: Size, canvas: Size) -> Size:
        """The image's height and width on the canvas."""
        (height, width), (down, across) = size, canvas
        if not self.option("resize_to_max_canvas"):
            down = min(max(height, self._tile), down)
            across = min(max(width, self._tile), across)
        if across / width < down / height:
            return max(min(math.floor(height * (across / width)), down), 1), across
        return down, max(min(math.floor(width * (down / height)), across), 1)


def _by_longest(size: Size, longest: int) -> Size:
    """Height and width with the longest edge given, the other even, as the processor rounds it."""
    height, width = size
    if width >= height:
        other = int(longest / (width / height))
        return max(other + other % 2, 1), longest
    other = int(longest * (width / height))
    return longest, max(other + other % 2, 1)


def _rows_and_columns(layout: Layout, whole_first: bool) -> Size:
    """Rows and columns of the tiles of a layout."""
    if len(layout.pieces) == 1:
        return 1, 1
    tiles = layout.pieces[1:] if whole_first else layout.pieces[:-1]
    rows = len({piece.box[1] for piece in tiles})
    return rows, len(tiles) // rows


def cut_tiles(canvas: Tensor, tile: int) -> Tensor:
    r"""Tiles in raster order, (B, tiles, 3, tile, tile), of (B, 3, H, W)."""
    cut = canvas.unflatten(3, (-1, tile)).unflatten(2, (-1, tile))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _flat(nested: Any) -> list[Any]:
    return [value for row in nested for value in row]
