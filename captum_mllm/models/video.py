"""``Video``, frames in time that a user explains, from a file, a folder or memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.models.images import ImageLike, read_image
from captum_mllm.models.layout import size_of

# Of these a folder of frames is made.
FRAME_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Video:
    r"""Frames of a video, in time.

    The model sees all of them, and no others: choose them before. Families with tokens for videos
    see some neighbouring frames as one group, two in Qwen-VL, whose tokens they share; all others
    are shown each frame as an image.

    Args:
        frames (Sequence[PIL.Image.Image, numpy.ndarray or Tensor]): at least 2 frames of one
            size, each as :class:`ImageTextInput` takes an image; also a whole array (T, H, W, 3) or
            tensor (T, 3, H, W).
        fps (float): frames per second, of these frames. It tells families that have a sense of
            time when a frame was seen. Default: 1.0

    Raises:
        TypeError: for a frame of another type, or frames per second that are not a number.
        ValueError: for fewer than 2 frames, frames of different sizes, a frame that cannot be
            read, or a number of frames per second that is not positive and finite.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ImageTextInput, Video
        >>> frames = [Image.new("RGB", (64, 48), (32 * t, 0, 0)) for t in range(8)]
        >>> video = Video(frames, fps=2.0)
        >>> video.times[-1]
        3.5
        >>> inp = ImageTextInput(video, "What happens?")
    """

    def __init__(self, frames: Sequence[ImageLike] | np.ndarray | Tensor, fps: float = 1.0) -> None:
        if isinstance(fps, bool) or not isinstance(fps, (int, float)):
            raise TypeError(f"got fps={fps!r}, expected a number of frames per second")
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"got fps={fps!r}, expected a positive number of frames per second")
        if isinstance(frames, (np.ndarray, Tensor)) and frames.ndim != 4:
            raise ValueError(
                f"got frames of shape {tuple(frames.shape)}, expected an array (T, H, W, 3), a "
                "tensor (T, 3, H, W), or a list of images"
            )
        if not isinstance(frames, (list, tuple, np.ndarray, Tensor)):
            raise TypeError(
                f"got frames of type {type(frames).__name__}, expected a list of images; a file or "
                "a folder of frames is read by Video.read(path)"
            )
        if len(frames) < 2:
            raise ValueError(
                f"got {len(frames)} frame(s), expected at least 2; give a single frame as an image"
            )
        self.frames = tuple(read_image(frame) for frame in frames)
        self.fps = float(fps)
        sizes = {size_of(frame) for frame in self.frames}
        if len(sizes) > 1:
            raise ValueError(
                f"got frames of {len(sizes)} sizes (height x width), "
                f"{', '.join(f'{height} x {width}' for height, width in sorted(sizes))}, expected "
                "frames of one size"
            )

    @classmethod
    def read(cls, path: str | Path, n_frames: int = 8, fps: float = 1.0) -> Video:
        r"""Read frames that are spread evenly over a video.

        Args:
            path (str or Path): a file of a video, which PyAV reads (``pip install
                captum_mllm[video]``), or a folder of images, in the order of their names.
            n_frames (int): how many frames to take; all of them if there are fewer.
                Default: 8
            fps (float): frames per second of a folder; a file has its own. Default: 1.0

        Returns:
            Video: its ``fps`` is that of the frames that were taken.

        Raises:
            FileNotFoundError: if there is no such file or folder.
            ModuleNotFoundError: for a file, if PyAV is not installed.
            ValueError: for a file or a folder without a video, or fewer than 2 frames.
        """
        if not is_integer(n_frames) or n_frames < 2:
            raise ValueError(f"got n_frames={n_frames!r}, expected an integer of at least 2")
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no video {str(path)!r}")
        if path.is_dir():
            return _read_folder(path, n_frames, fps)
        return _read_file(path, n_frames)

    @property
    def times(self) -> tuple[float, ...]:
        """When each frame was seen, in seconds from the first one."""
        return tuple(index / self.fps for index in range(len(self.frames)))


def _spread(total: int, count: int) -> list[int]:
    """Indices of evenly spread frames, the first one among them."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def _read_folder(path: Path, n_frames: int, fps: float) -> Video:
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in FRAME_ENDINGS)
    if len(files) < 2:
        raise ValueError(
            f"{path} holds {len(files)} image file(s), expected at least 2 frames of a video, "
            f"named in the order of time and ending in one of {', '.join(FRAME_ENDINGS)}"
        )
    chosen = _spread(len(files), n_frames)
    frames = []
    for index in chosen:
        with Image.open(files[index]) as image:
            frames.append(read_image(image))
    return Video(frames, fps * len(chosen) / len(files))


def _read_file(path: Path, n_frames: int) -> Video:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading a video file needs PyAV: pip install 'captum_mllm[video]'; or give its frames "
            "as a folder of images, or as Video(list_of_images, fps=...)"
        ) from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video in it")
            stream: Any = container.streams.video[0]
            times, rate = [], float(stream.average_rate or 0)
            for index, frame in enumerate(container.decode(stream)):
                times.append(frame.time if frame.time is not None else index / (rate or 1.0))
        chosen = set(_spread(len(times), n_frames))
        frames = []
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(container.streams.video[0])):
                if index in chosen:
                    frames.append(frame.to_image())
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error
    if len(frames) < 2:
        raise ValueError(f"{path} has {len(frames)} frame(s), expected a video of at least 2")
    length = (times[-1] - times[0]) * len(times) / (len(times) - 1)
    if length <= 0:
        raise ValueError(f"{path} does not tell when its frames are shown")
    return Video(frames, len(frames) / length)
