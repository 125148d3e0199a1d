"""Encoders of videos, whose groups of frames share image tokens: VideoGrid, VideoSquare."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from captum_mllm.models.geometry import Geometry, spread_windows
from captum_mllm.models.grids import NativeGrid
from captum_mllm.models.layout import Box, Layout, Piece, Size
from captum_mllm.models.pixels import normalize, resize
from captum_mllm.models.query import Clip


class VideoGrid(NativeGrid):
    r"""A grid for each group of frames, reported as ``video_grid_thw``: Qwen-VL, GLM-4V.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
        clip (Clip): the video.
        frames_count (bool): whether the limits on pixels are those of all frames together.
            Default: False, of each
    """

    kind: ClassVar[str] = "video"
    pixels: ClassVar[str] = "pixel_values_videos"

    def __init__(self, config: Any, processor: Any, clip: Clip, frames_count: bool = False) -> None:
        super().__init__(config, processor)
        self.clip = clip
        self.frames = len(clip.frames) if frames_count else 1

    def _counts(self, inputs: dict[str, Any], index: int) -> tuple[int, int, int]:
        groups, rows, columns = (int(count) for count in inputs["video_grid_thw"][0])
        if groups != self.clip.n_groups:
            raise RuntimeError(
                f"the video processor makes {groups} groups of frames, expected "
                f"{self.clip.n_groups} of {self.clip.n_frames} frames; please report it with the "
                "model's name"
            )
        return groups, rows, columns


class VideoSquare(Geometry):
    r"""A square grid for each frame, which shows all of it: InternVL, SmolVLM, LLaVA-OneVision.

    The encoder's resolution is fixed, so larger frames are seen through several windows, each of
    which is a video of its own.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
        clip (Clip): the video.
    """

    kind: ClassVar[str] = "video"
    # Whether the model takes the frames of a video as a dimension of its own.
    stacked: ClassVar[bool] = False

    def __init__(self, config: Any, processor: Any, clip: Clip) -> None:
        super().__init__(config, processor)
        self.clip = clip

    def windows(self, size: Size, native: Size) -> list[Box]:
        return spread_windows(size, native, (0, 0, native[1], native[0]))

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        side = math.isqrt(n_tokens)
        if side * side != n_tokens:
            raise RuntimeError(f"{n_tokens} tokens of a frame do not make a square grid")
        return Layout(size, (Piece(side, side, (0, 0, size[1], size[0])),))

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        return normalize(resize(images, self._square, self.option("resample")), self.option)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        joined = super().join(parts, rows)
        return joined.unflatten(0, (rows, -1)) if self.stacked else joined

    @property
    def _square(self) -> Size:
        return self.size["height"], self.size["width"]
