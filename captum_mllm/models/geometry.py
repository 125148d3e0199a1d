"""How the kinds of vision encoders turn a picture into image tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of
from captum_mllm.models.pixels import normalize, resize

# By how much a window may be stretched before another one is needed.
_STRETCH = 1.05


class Geometry(ABC):
    r"""Where the tokens of a picture lie, and what another scale of it means.

    The scale of a picture is its size relative to its native size, the size at which the user
    gave it: a picture twice as high and wide as it was shall become about four times the tokens.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
    """

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        self.config = config
        self.vision = config.vision_config
        self.processor = processor
        self.image_processor = processor.image_processor

    def windows(self, size: Size, native: Size) -> list[Box]:
        """The boxes of the picture that the model sees in a pass each; by default all of it."""
        return [(0, 0, size[1], size[0])]

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        """What to pass to the processor at this scale; nothing at the native one."""
        return {}

    @abstractmethod
    def layout(self, size: Size, inputs: dict[str, Tensor], index: int, n_tokens: int) -> Layout:
        """The layout of the picture ``index`` of the processor's output.

        Args:
            size (tuple[int, int]): height and width of the picture.
            inputs (dict[str, Tensor]): what the processor returned.
            index (int): which of the pictures in ``inputs``.
            n_tokens (int): how many image tokens the picture has.
        """

    @abstractmethod
    def pixel_values(self, pictures: Tensor, layout: Layout) -> Tensor:
        """What the processor makes of (B, 3, H, W) pictures in [0, 1], differentiable."""


class NativeGrid(Geometry):
    """One grid that follows the picture's size: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V."""

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        # The limits on the number of pixels would undo the scale: they move with it.
        zoom = (size[0] * size[1]) / (native[0] * native[1])
        cell = self.vision.patch_size * self.vision.spatial_merge_size
        lowest = max(round(self.image_processor.size["shortest_edge"] * zoom), 1)
        highest = max(round(self.image_processor.size["longest_edge"] * zoom), cell * cell)
        area = size[0] * size[1]
        shrink = math.sqrt(min(max(area, lowest), highest) / area)
        if min(size) * shrink < cell / 2:
            raise ValueError(
                f"at this scale the picture has {size[0]} x {size[1]} pixels, too few for one "
                f"image token of {cell} x {cell}; use a larger scale or a larger picture"
            )
        return {"size": {"shortest_edge": lowest, "longest_edge": highest}}

    def layout(self, size: Size, inputs: dict[str, Tensor], index: int, n_tokens: int) -> Layout:
        merge = self.vision.spatial_merge_size
        _, rows, columns = inputs["image_grid_thw"][index].tolist()
        height, width = size
        return Layout(size, (Piece(rows // merge, columns // merge, (0, 0, width, height)),))

    def pixel_values(self, pictures: Tensor, layout: Layout) -> Tensor:
        patch, merge = self.vision.patch_size, self.vision.spatial_merge_size
        frames = self.image_processor.temporal_patch_size
        piece = layout.pieces[0]
        size = (piece.rows * merge * patch, piece.columns * merge * patch)
        pictures = resize(pictures, size, self.image_processor.resample)
        pictures = normalize(pictures, self.image_processor)
        # Patches come in blocks of merge x merge, each repeated over the frames of a still.
        blocks = pictures.unflatten(3, (piece.columns, merge, patch)).unflatten(
            2, (piece.rows, merge, patch)
        )
        blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
        blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], frames, patch, patch)
        return blocks.reshape(-1, 3 * frames * patch * patch)


class FixedSquare(Geometry):
    r"""One square of fixed size, cut from the middle of the picture: LLaVA-1.5.

    The encoder's resolution is fixed, so a larger picture is seen through several square windows,
    each as large as the square that the model sees of the native picture.

    So the scale changes what of an oblong picture is seen, and not only how well: up to scale 1
    its middle square, as the model is used; above it all of the picture. What lies outside of the
    square has no tokens at scale 1 or less, see :meth:`Layout.coverage`. Where the processor pads
    pictures instead of cutting them, all of the picture is seen at every scale.
    """

    def windows(self, size: Size, native: Size) -> list[Box]:
        height, width = size
        if height * width <= native[0] * native[1]:
            return super().windows(size, native)
        left, top, right, bottom = self._seen(native)
        down, across = min(bottom - top, height), min(right - left, width)
        rows, columns = _count(height, down), _count(width, across)
        stretch = max(height / (rows * down), width / (columns * across), 1)
        down, across = min(round(down * stretch), height), min(round(across * stretch), width)
        return [
            (left, top, left + across, top + down)
            for top in _spread(height, down, rows)
            for left in _spread(width, across, columns)
        ]

    def layout(self, size: Size, inputs: dict[str, Tensor], index: int, n_tokens: int) -> Layout:
        side = math.isqrt(n_tokens)
        if side * side != n_tokens:
            raise RuntimeError(f"{n_tokens} image tokens do not make a square grid")
        return Layout(size, (Piece(side, side, self._seen(size)),))

    def pixel_values(self, pictures: Tensor, layout: Layout) -> Tensor:
        if self._pads():
            pictures = _pad_square(pictures, self.image_processor.image_mean)
        resized, (top, left), kept = self._crop(size_of(pictures))
        pictures = resize(pictures, resized, self.image_processor.resample)
        pictures = pictures[..., top : top + kept[0], left : left + kept[1]]
        return normalize(pictures, self.image_processor)

    def _pads(self) -> bool:
        return bool(getattr(self.image_processor, "do_pad", False))

    def _seen(self, size: Size) -> Box:
        """The box of the picture that the model sees."""
        height, width = size
        if self._pads():
            side = max(size)
            left, top = (side - width) // 2, (side - height) // 2
            return (-left, -top, side - left, side - top)
        resized, (top, left), kept = self._crop(size)
        down, across = height / resized[0], width / resized[1]
        return (left * across, top * down, (left + kept[1]) * across, (top + kept[0]) * down)

    def _crop(self, size: Size) -> tuple[Size, tuple[int, int], Size]:
        """The size after resizing, where the centre crop starts in it, and the crop's size."""
        options = self.image_processor
        shortest = options.size.get("shortest_edge")
        if shortest:
            longest = int(shortest * max(size) / min(size))
            resized = (shortest, longest) if size[0] <= size[1] else (longest, shortest)
        else:
            resized = (options.size["height"], options.size["width"])
        if not options.do_center_crop:
            return resized, (0, 0), resized
        kept = (options.crop_size["height"], options.crop_size["width"])
        return resized, ((resized[0] - kept[0]) // 2, (resized[1] - kept[1]) // 2), kept


class Tiles(Geometry):
    """Square tiles in raster order, then a thumbnail where there is more than one: InternVL."""

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        options = getattr(self.processor, "images_kwargs", {})
        count = self.image_processor.get_number_of_image_patches(*native, dict(options))
        rows, columns = self._grid(native, count - 1 if count > 1 else 1)
        zoom = math.sqrt((size[0] * size[1]) / (native[0] * native[1]))
        count = max(round(rows * zoom), 1) * max(round(columns * zoom), 1)
        return {"crop_to_patches": True, "min_patches": count, "max_patches": count}

    def layout(self, size: Size, inputs: dict[str, Tensor], index: int, n_tokens: int) -> Layout:
        side = self._tokens_per_side()
        count = n_tokens // side**2
        height, width = size
        whole = Piece(side, side, (0, 0, width, height))
        if count == 1:
            return Layout(size, (whole,))
        rows, columns = self._grid(size, count - 1)
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
        return Layout(size, (*tiles, whole))

    def pixel_values(self, pictures: Tensor, layout: Layout) -> Tensor:
        tile = (self.image_processor.size["height"], self.image_processor.size["width"])
        resample = self.image_processor.resample
        count = len(layout.pieces)
        parts = []
        if count > 1:
            rows, columns = self._grid(layout.size, count - 1)
            canvas = resize(pictures, (rows * tile[0], columns * tile[1]), resample)
            cut = canvas.unflatten(3, (columns, tile[1])).unflatten(2, (rows, tile[0]))
            parts.append(cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2))
        parts.append(resize(pictures, tile, resample).unsqueeze(1))
        return normalize(torch.cat(parts, 1).flatten(0, 1), self.image_processor)

    def _grid(self, size: Size, count: int) -> Size:
        """The rows and columns of ``count`` tiles nearest to the picture's aspect ratio.

        As the image processor has it, more columns win a tie if the picture is large for so many
        tiles, and more rows otherwise.
        """
        tile = self.image_processor.size
        large = size[0] * size[1] > 0.5 * tile["height"] * tile["width"] * count
        divisors = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
        columns = min(
            reversed(divisors) if large else divisors,
            key=lambda divisor: abs(size[1] / size[0] - divisor / (count // divisor)),
        )
        return count // columns, columns

    def _tokens_per_side(self) -> int:
        image, patch = self.vision.image_size, self.vision.patch_size
        image = image if isinstance(image, int) else image[0]
        patch = patch if isinstance(patch, int) else patch[0]
        return int(image // patch * self.config.downsample_ratio)


def _count(length: int, window: float) -> int:
    """As few windows as cover the length, if they may be stretched by a few percent."""
    return max(math.ceil(length / (window * _STRETCH)), 1)


def _spread(length: int, window: int, count: int) -> list[int]:
    """Starts of evenly spread windows."""
    if count == 1:
        return [(length - window) // 2]
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def _pad_square(pictures: Tensor, colour: list[float]) -> Tensor:
    """Centre the pictures on a square of the mean colour, as LLaVA's own processor may."""
    height, width = pictures.shape[-2:]
    side = max(height, width)
    levels = pictures.new_tensor([int(level * 255) / 255 for level in colour])
    canvas = levels[:, None, None].expand(len(pictures), 3, side, side).clone()
    top, left = (side - height) // 2, (side - width) // 2
    canvas[..., top : top + height, left : left + width] = pictures
    return canvas
