"""Encoders of videos, whose groups of frames share image tokens: VideoGrid, VideoSquare,
ShrunkSquare."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.grids import NativeGrid
from captum_mllm.models.layout import Layout, Size, size_of
from captum_mllm.models.pixels import resize
from captum_mllm.models.query import Clip
from captum_mllm.models.squares import FixedSquare


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
    pixels = "pixel_values_videos"

    def __init__(self, config: Any, processor: Any, clip: Clip, frames_count: bool = False) -> None:
        super().__init__(config, processor)
        self.clip = clip
        self.frames = len(clip.frames) if frames_count else 1

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        options = super().processor_options(size, native)
        # The limits that move along are capped already.
        return {**options, "cap_pixels_per_frame": False} if options and self._caps else options

    def _counts(self, inputs: dict[str, Any], index: int) -> tuple[int, int, int]:
        groups, rows, columns = (int(count) for count in inputs["video_grid_thw"][0])
        _check_count(self.clip, groups)
        return groups, rows, columns

    @property
    def _caps(self) -> bool:
        """Whether many frames have fewer pixels each, as the Qwen processors may have it."""
        return bool(self.option("cap_pixels_per_frame"))

    def _limits(self, zoom: float) -> tuple[int, int]:
        lowest, highest = super()._limits(1)
        if self._caps:
            count, budget = len(self.clip.frames), self.option("max_video_tokens") * self.cell**2
            least = int(1.05 * lowest)
            if self.frames == 1:
                share = int(0.9 * budget) * self.option("temporal_patch_size") // count
                highest = max(min(highest, share), least)
            else:
                highest = max(min(highest // count, budget), least) * count
        return max(round(lowest * zoom), 1), max(round(highest * zoom), self.cell**2)


class VideoSquare(FixedSquare):
    r"""A square of fixed size for each frame: InternVL, LLaVA-OneVision, LLaVA-NeXT-Video.

    Enlarged frames are seen through windows, as images are; each window is a video of its own.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
        clip (Clip): the video.
        pixels (str): the name that the model takes the pixels by.
            Default: ``"pixel_values_videos"``
        stacked (bool): whether the frames are a dimension of their own in them. Default: True
    """

    kind: ClassVar[str] = "video"

    def __init__(
        self,
        config: Any,
        processor: Any,
        clip: Clip,
        pixels: str = "pixel_values_videos",
        stacked: bool = True,
    ) -> None:
        super().__init__(config, processor)
        self.clip = clip
        self.pixels = pixels
        self.stacked = stacked

    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        rows, shape = len(inputs["input_ids"]), inputs[self.pixels].shape
        _check_count(self.clip, shape[1] if self.stacked else shape[0] // rows)
        return super().layout(size, inputs, index, n_tokens)

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        joined = super().join(parts, rows)
        return joined.unflatten(0, (rows, -1)) if self.stacked else joined


class ShrunkSquare(VideoSquare):
    """Such a square of frames that are resized to a longest side before: SmolVLM."""

    def check_options(self) -> None:
        Geometry.check_options(self)
        # They have to be there.
        _ = self.size["longest_edge"], self._side

    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        height, width = size_of(images)
        longest = self.size["longest_edge"]
        if width >= height:
            between = (_even(longest * height / width), longest)
        else:
            between = (longest, _even(longest * width / height))
        images = resize(images, between, self.option("resample"))
        return super().pixel_values(images, layout)

    @property
    def _side(self) -> int:
        side: int = self.option("max_image_size")["longest_edge"]
        return side

    def _crop(self, size: Size) -> tuple[Size, tuple[int, int], Size]:
        square = (self._side, self._side)
        return square, (0, 0), square


def _check_count(clip: Clip, groups: int) -> None:
    """Refuse what a processor made of other frames than were given."""
    if groups != clip.n_groups:
        raise RuntimeError(
            f"the video processor makes {groups} groups of frames, expected {clip.n_groups} of "
            f"{clip.n_frames} frames; please report it with the model's name"
        )


def _even(length: float) -> int:
    """Whole pixels, one more where they are odd."""
    return int(length) + int(length) % 2
