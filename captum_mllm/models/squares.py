"""FixedSquare: encoders that see one square of fixed size."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from captum_mllm.models.geometry import Geometry, spread_windows
from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of, square_around
from captum_mllm.models.pixels import normalize, pad_square, resize


class FixedSquare(Geometry):
    r"""One square of fixed size: LLaVA-1.5, PaliGemma, Gemma 3, DeepSeek-VL.

    The processor cuts the square from the middle of the image, distorts the image to a square, or
    pads it to one. The tokens make a square grid, as fine as the patches or pooled.

    The encoder's resolution is fixed, so a larger image is seen through several square windows,
    each as large as the square that the model sees of the native image. Where the middle is cut
    out, the scale changes what of an oblong image is seen, and not only how well: up to scale 1
    its middle square, as the model is used; above it all of the image. Pixels outside of the
    square have no tokens at scale 1 or less, see :meth:`Layout.coverage`. Elsewhere all of the
    image is seen at every scale.
    """

    required: ClassVar[dict[str, tuple[Any, ...]]] = {
        "do_resize": (True,),
        "do_pan_and_scan": (False, None),
        "crop_to_patches": (False, None),
    }

    def check_options(self) -> None:
        super().check_options()
        size = self.size
        if not ("shortest_edge" in size or {"height", "width"} <= set(size)):
            raise ValueError(
                f"the {self.kind} processor has size={size}, expected shortest_edge, or height "
                "and width"
            )
        square = self._pads() or size.get("height", 0) == size.get("width")
        if self._crops():
            crop = self._named_size("crop_size")
            smallest = size.get("shortest_edge") or min(size["height"], size["width"])
            square = crop["height"] == crop["width"] <= smallest
        if not square:
            raise ValueError(
                f"the {self.kind} processor has size={size}, do_center_crop={self._crops()} and "
                f"crop_size={self.option('crop_size')}, which do not make a square of every image; "
                "expected a size of equal height and width, or a square crop not larger than it"
            )
        # Of a square image nothing is cut but what the crop takes from all.
        self.check_side(self._crop((1, 1))[2][0])

    def windows(self, size: Size, native: Size) -> list[Box]:
        return spread_windows(size, native, self._seen(native))

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        side = math.isqrt(n_tokens)
        if side * side != n_tokens:
            raise RuntimeError(f"{n_tokens} image tokens do not make a square grid")
        return Layout(size, (Piece(side, side, self._seen(size)),))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        resample = self.option("resample")
        if self._pads():
            images = pad_square(images, self.option("image_mean"))
        resized, (top, left), kept = self._crop(size_of(images))
        images = resize(images, resized, resample)
        images = images[..., top : top + kept[0], left : left + kept[1]]
        return normalize(images, self.option)

    def _pads(self) -> bool:
        """Whether the processor pads images to a square; others pad batches by this option."""
        return bool(self.option("do_pad")) and hasattr(self.media_processor, "pad_to_square")

    def _crops(self) -> bool:
        return bool(self.option("do_center_crop"))

    def _seen(self, size: Size) -> Box:
        """The box of the image that the model sees."""
        height, width = size
        if self._pads():
            return square_around(size)
        resized, (top, left), kept = self._crop(size)
        down, across = height / resized[0], width / resized[1]
        return (left * across, top * down, (left + kept[1]) * across, (top + kept[0]) * down)

    def _crop(self, size: Size) -> tuple[Size, tuple[int, int], Size]:
        """The size after resizing, where the centre crop starts in it, and the crop's size."""
        wanted = self.size
        shortest = wanted.get("shortest_edge")
        if shortest:
            longest = int(shortest * max(size) / min(size))
            resized = (shortest, longest) if size[0] <= size[1] else (longest, shortest)
        else:
            resized = (wanted["height"], wanted["width"])
        if not self._crops():
            return resized, (0, 0), resized
        crop = self._named_size("crop_size")
        kept = (crop["height"], crop["width"])
        return resized, ((resized[0] - kept[0]) // 2, (resized[1] - kept[1]) // 2), kept


class PaddedSquare(FixedSquare):
    """One square that shows the whole image, resized and then padded: DeepSeek-VL."""

    required: ClassVar[dict[str, tuple[Any, ...]]] = {"do_resize": (True,), "do_pad": (True,)}

    def check_options(self) -> None:
        super().check_options()
        self.check_side(self.size["height"])

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        side = self.size["height"]
        zoom, least = side / max(size_of(images)), self.option("min_size", 1)
        height, width = (max(round(length * zoom), least) for length in size_of(images))
        images = resize(images, (height, width), self.option("resample"))
        return normalize(pad_square(images, self.option("image_mean")), self.option)
