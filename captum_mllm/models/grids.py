"""Encoders whose grid of tokens follows the image: NativeGrid, PaddedGrid, RowGrid, PooledGrid."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.layout import Layout, Piece, Size, size_of
from captum_mllm.models.pixels import normalize, pad, pad_patches, resize

# How far a side of a grid may be from the one that was asked for: roundings differ by family.
_SLACK = 0.1
# Limits on pixels that are nearer to each other leave an image no size of its own.
_FROZEN = 1.1
# What Gemma 4 allows as `max_soft_tokens`.
_BUDGETS = (70, 140, 280, 560, 1120)


class NativeGrid(Geometry):
    r"""One grid that follows the image's size, reported as ``image_grid_thw``: Qwen-VL, GLM-4V.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
        frames_count (bool): whether the limits on pixels count each frame of a still.
            Default: False
        blocks (bool): whether patches are listed by blocks that are merged into one token, each
            repeated over the frames of a still. Default: True
    """

    def __init__(
        self, config: Any, processor: Any, frames_count: bool = False, blocks: bool = True
    ) -> None:
        super().__init__(config, processor)
        self.frames = self.option("temporal_patch_size", 1) if frames_count else 1
        self.blocks = blocks

    @property
    def merge(self) -> int:
        return self.vision.spatial_merge_size

    @property
    def cell(self) -> int:
        """Pixels of a token along a side."""
        return self.vision.patch_size * self.merge

    def check_options(self) -> None:
        super().check_options()
        frames = getattr(self.vision, "temporal_patch_size", None)
        sizes = {"patch_size": self.vision.patch_size, "merge_size": self.merge}
        for name, own in {**sizes, "temporal_patch_size": frames}.items():
            value = self.option(name, own)
            if own is not None and value != own:
                raise ValueError(
                    f"the {self.kind} processor has {name}={value}, the model's vision tower "
                    f"{own}; is it the processor of another model?"
                )
        lowest, highest = self._pixel_range
        if highest < max(lowest, self.cell**2):
            given = {"size": self.size, **self._named_limits}
            raise ValueError(
                f"the {self.kind} processor has {given}: an image has"
                f" {lowest} pixels at least and {highest} at most; expected a larger "
                f"limit, of one image token of {self.cell} x {self.cell} or more"
            )

    def frozen(self) -> str | None:
        lowest, highest = self._limits(1)
        if highest > _FROZEN * lowest:
            return None
        given = self._named_limits or self.size
        return f"{given}, between {lowest} and {highest} pixels"

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        # The limits on the number of pixels would undo the scale: they move with it.
        zoom = (size[0] * size[1]) / (native[0] * native[1])
        lowest, highest = self._limits(zoom)
        area = size[0] * size[1]
        shrink = math.sqrt(min(max(area, lowest), highest) / area)
        if min(size) * shrink < self.cell / 2:
            raise ValueError(
                f"at this scale the image has {size[0]} x {size[1]} pixels, too few for one "
                f"image token of {self.cell} x {self.cell}; use a larger scale or a larger image"
            )
        options: dict[str, Any] = {"size": {"shortest_edge": lowest, "longest_edge": highest}}
        # Where they are set, they go before `size`.
        for name, limit in (("min_pixels", lowest), ("max_pixels", highest)):
            if name in self._named_limits:
                options[name] = limit
        return options

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:
        zoom = (size[0] * size[1]) / (native[0] * native[1])
        lowest, highest = (limit / self.frames for limit in self._limits(zoom))
        area = size[0] * size[1]
        shrink = math.sqrt(min(max(area, lowest), highest) / area)
        _check_grid(self, [length * shrink / self.cell for length in size], layout)

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        _, rows, columns = self._counts(inputs, index)
        height, width = size
        return Layout(
            size, (Piece(rows // self.merge, columns // self.merge, (0, 0, width, height)),)
        )

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        patch, piece = self.vision.patch_size, layout.pieces[0]
        size = (piece.rows * self.cell, piece.columns * self.cell)
        frames = images.unflatten(1, (-1, 3)).flatten(0, 1)
        frames = normalize(resize(frames, size, self.option("resample")), self.option)
        if not self.blocks:
            patches = frames.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
            return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        blocks = frames.unflatten(3, (piece.columns, self.merge, patch)).unflatten(
            2, (piece.rows, self.merge, patch)
        )
        blocks = blocks.unflatten(0, (len(images), -1)).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        together = self.option("temporal_patch_size", 1)
        # A still is repeated.
        blocks = blocks.expand(*blocks.shape[:6], together, patch, patch)
        return blocks.reshape(-1, 3 * together * patch * patch)

    def _counts(self, inputs: dict[str, Any], index: int) -> tuple[int, int, int]:
        """Groups of frames, rows and columns of patches of an image."""
        groups, rows, columns = (int(count) for count in inputs["image_grid_thw"][index])
        return groups, rows, columns

    def _limits(self, zoom: float) -> tuple[int, int]:
        """The least and the largest number of pixels, moved by the zoom of the area."""
        lowest, highest = self._pixel_range
        return max(round(lowest * zoom), 1), max(round(highest * zoom), self.cell**2)

    @property
    def _pixel_range(self) -> tuple[int, int]:
        """The least and the largest number of pixels at scale 1."""
        named, size = self._named_limits, self.size
        lowest = named.get("min_pixels") or size["shortest_edge"]
        return lowest, named.get("max_pixels") or size["longest_edge"]

    @property
    def _named_limits(self) -> dict[str, int]:
        """Limits beside ``size``, of processors that take them; they go before it."""
        names = [name for name in ("min_pixels", "max_pixels") if name in self.accepted]
        return {name: self.option(name) for name in names if self.option(name) is not None}


class PaddedGrid(NativeGrid):
    """Such a grid of an image that is padded to whole tokens at its right and bottom: Kimi K2.5."""

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor, blocks=False)

    @property
    def merge(self) -> int:
        return self.vision.merge_kernel_size[0]

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        return {}

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:
        height, width = self._shown(size)
        if size not in (native, (height, width)):
            self._refuse_scale(f"{size[0]} x {size[1]}", f"an image of {height} x {width} pixels")

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        _, rows, columns = (int(count) // self.merge for count in inputs["image_grid_thw"][index])
        shown = self._shown(size)
        right, bottom = (
            length * count * self.cell / kept
            for length, count, kept in zip(size[::-1], (columns, rows), shown[::-1])
        )
        return Layout(size, (Piece(rows, columns, (0, 0, right, bottom)),))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        patch, piece = self.vision.patch_size, layout.pieces[0]
        canvas = (piece.rows * self.cell, piece.columns * self.cell)
        shown = resize(images, self._shown(size_of(images)), self.option("resample"))
        laid = normalize(pad(shown, canvas, (0, 0)), self.option)
        patches = laid.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    @property
    def _pixel_range(self) -> tuple[int, int]:
        return 1, self.option("max_patches") * self.vision.patch_size**2

    def _limits(self, zoom: float) -> tuple[int, int]:
        return self._pixel_range

    def _shown(self, size: Size) -> Size:
        """The image's height and width before it is padded."""
        patch = self.vision.patch_size
        longest = self.size["max_height"] * patch
        patches = max(size[0] // patch, 1) * max(size[1] // patch, 1)
        zoom = min(1.0, math.sqrt(self.option("max_patches") / patches), longest / max(size))
        height, width = (min(max(int(length * zoom), 1), longest) for length in size)
        return height, width


class RowGrid(Geometry):
    """One grid that follows the image's size, a break token after each row: Pixtral, Mistral 3."""

    required: ClassVar[dict[str, tuple[Any, ...]]] = {
        "do_resize": (True,),
        "do_center_crop": (False, None),
    }

    @property
    def cell(self) -> int:
        return self.vision.patch_size * (getattr(self.config, "spatial_merge_size", None) or 1)

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        zoom = math.sqrt((size[0] * size[1]) / (native[0] * native[1]))
        return {"size": {"longest_edge": max(round(self._longest * zoom), self.cell)}}

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:
        zoom = math.sqrt((size[0] * size[1]) / (native[0] * native[1]))
        shrink = min(self._longest * zoom / max(size), 1)
        _check_grid(self, [length * shrink / self.cell for length in size], layout)

    def check_options(self) -> None:
        super().check_options()
        # It has to be there.
        _ = self._longest

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        rows, columns = (int(length) // self.cell for length in inputs["image_sizes"][index])
        return Layout(size, (Piece(rows, columns, (0, 0, size[1], size[0])),))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        piece = layout.pieces[0]
        size = (piece.rows * self.cell, piece.columns * self.cell)
        return normalize(resize(images, size, self.option("resample")), self.option)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        # Images of a prompt are padded to the largest of them, after they were normalized.
        height, width = (max(part.shape[side] for part in parts) for side in (-2, -1))
        parts = [_extend(part, height, width) for part in parts]
        return super().join(parts, rows)

    @property
    def _longest(self) -> int:
        size = self.size
        return (
            size["longest_edge"] if "longest_edge" in size else max(size["height"], size["width"])
        )


class PooledGrid(Geometry):
    """One grid of pooled patches that keeps the image's shape within a budget: Gemma 4."""

    def check_options(self) -> None:
        super().check_options()
        budget = self.option("max_soft_tokens")
        if budget not in _BUDGETS:
            raise ValueError(
                f"the {self.kind} processor has max_soft_tokens={budget!r}, expected one of "
                f"{_BUDGETS}"
            )
        for name in ("patch_size", "pooling_kernel_size"):
            value, own = self.option(name), getattr(self.vision, name)
            if value != own:
                raise ValueError(
                    f"the {self.kind} processor has {name}={value}, the model's vision tower "
                    f"{own}; is it the processor of another model?"
                )

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        if size == native:
            return {}
        zoom = (size[0] * size[1]) / (native[0] * native[1])
        wanted = self.option("max_soft_tokens") * zoom
        budget = min(_BUDGETS, key=lambda count: abs(math.log(count / wanted)))
        if not 0.6 < budget / wanted < 1.7:
            raise ValueError(
                f"at this scale the image should have up to {wanted:.0f} tokens, but the model "
                f"takes one of {_BUDGETS} as `max_soft_tokens`; use a scale between"
            )
        return {"max_soft_tokens": budget}

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        columns, rows = (inputs["image_position_ids"][index].amax(0) + 1).tolist()
        pool = self.option("pooling_kernel_size")
        return Layout(size, (Piece(rows // pool, columns // pool, (0, 0, size[1], size[0])),))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        patch, pool = self.option("patch_size"), self.option("pooling_kernel_size")
        piece = layout.pieces[0]
        size = (piece.rows * pool * patch, piece.columns * pool * patch)
        images = normalize(resize(images, size, self.option("resample")), self.option)
        patches = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        longest = max(part.shape[1] for part in parts)
        return super().join([pad_patches(part, longest) for part in parts], rows)

    def fill(self, values: Tensor, shape: torch.Size) -> Tensor:
        return pad_patches(values, shape[1])


def _check_grid(geometry: Geometry, asked: list[float], layout: Layout) -> None:
    piece = layout.pieces[0]
    came = (piece.rows, piece.columns)
    # Some processors enlarge an image till its shorter side has a token.
    fits = [
        all(abs(own - want / least) <= max(1, _SLACK * want) for own, want in zip(came, asked))
        for least in (1, min(*asked, 1))
    ]
    if not any(fits):
        rows, columns = (max(round(count), 1) for count in asked)
        geometry._refuse_scale(f"{rows} x {columns}", f"a grid of {came[0]} x {came[1]} tokens")


def _extend(values: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.pad(
        values, (0, width - values.shape[-1], 0, height - values.shape[-2])
    )
