"""``Video``, frames in time that a user explains, from a file, a folder or memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from captum_mllm._options import check_number, check_whole
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
            tensor (T, 3, H, W). Integers are levels of 8 bits: where white lies among others is
            guessed from one image, and might differ from frame to frame.
        fps (float): frames per second, of these frames. It tells families that have a sense of
            time when a frame was seen. Default: 1.0

    Attributes:
        times (tuple[float, ...]): when each frame was seen, in seconds from the first one.

    Raises:
        TypeError: for a frame of another type, or frames per second that are not a number.
        ValueError: for fewer than 2 frames, frames of different sizes, a frame that cannot be
            read or has integer levels of more than 8 bits, or a number of frames per second that is
            not positive and finite.

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
        check_number("fps", fps, "(0, inf)")
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
        self.frames = tuple(map(_read_frame, frames))
        self.fps = float(fps)
        self.times = tuple(index / self.fps for index in range(len(frames)))
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
                captum_mllm[video]``), or a folder of images, in the order of the numbers in their
                names.
            n_frames (int): how many frames to take; all of them if there are fewer.
                Default: 8
            fps (float): frames per second of a folder; a file has its own. Default: 1.0

        Returns:
            Video: its ``fps`` is that of the frames that were taken, on average; its ``times`` are
            those of each.

        Raises:
            TypeError: for numbers of another type.
            FileNotFoundError: if there is no such file or folder.
            ModuleNotFoundError: for a file, if PyAV is not installed.
            ValueError: for a file or a folder without a video, or fewer than 2 frames.
        """
        check_whole("n_frames", n_frames, 2)
        check_number("fps", fps, "(0, inf)")
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no video {str(path)!r}")
        if path.is_dir():
            return _read_folder(path, n_frames, float(fps))
        return _read_file(path, n_frames)


def _read_frame(frame: ImageLike) -> Tensor:
    """A frame whose white does not depend on its own levels."""
    kind = f"mode {frame.mode}" if isinstance(frame, Image.Image) else ""
    if isinstance(frame, (np.ndarray, Tensor)):
        kind = str(frame.dtype).removeprefix("torch.")
    if kind.startswith("mode I") or ("int" in kind and kind not in ("uint8", "quint8")):
        raise ValueError(
            f"got frames of {kind}, whose white might differ from frame to frame; give "
            "frames / white as arrays of floating point in [0, 1]"
        )
    return read_image(frame)


def _spread(total: int, count: int) -> list[int]:
    """Indices of evenly spread frames, the first one among them."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def _read_folder(path: Path, n_frames: int, fps: float) -> Video:
    found = (each for each in path.iterdir() if each.suffix.lower() in FRAME_ENDINGS)
    files = sorted(found, key=_in_time)
    if len(files) < 2:
        raise ValueError(
            f"{path} holds {len(files)} image file(s), expected at least 2 frames of a video, "
            f"numbered in the order of time and ending in one of {', '.join(FRAME_ENDINGS)}"
        )
    chosen = _spread(len(files), n_frames)
    frames = []
    for index in chosen:
        with Image.open(files[index]) as image:
            frames.append(_read_frame(image))
    video = Video(frames, fps * len(chosen) / len(files))
    video.times = tuple(index / fps for index in chosen)
    return video


def _in_time(path: Path) -> tuple[list[Any], str]:
    """What sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


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
        chosen = _spread(len(times), n_frames)
        frames = []
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(container.streams.video[0])):
                if index in chosen:
                    upright = frame.to_image().rotate(frame.rotation, expand=True)
                    frames.append(upright)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error
    if len(frames) < 2:
        raise ValueError(f"{path} has {len(frames)} frame(s), expected a video of at least 2")
    length = (times[-1] - times[0]) * len(times) / (len(times) - 1)
    if length <= 0 or times != sorted(times):
        raise ValueError(f"{path} does not tell when its frames are shown")
    video = Video(frames, len(frames) / length)
    video.times = tuple(times[index] - times[0] for index in chosen)
    return video
