"""A video is read, refused, and shown as a list of images where a model has no tokens for it."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_mllm import (
    MLLM,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
    Video,
)
from captum_mllm.models.query import Clip, name_images
from tests.models.tiny_models import shared
from tests.models.tiny_videos import noise_video

QUESTION = "what is in the image ?"


def frames(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    return [Image.new("RGB", size, (20 * index, 0, 0)) for index in range(count)]


def in_messages(*parts: dict[str, str]) -> list[dict[str, object]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def test_a_video_has_the_times_of_its_frames() -> None:
    video = Video(frames(5), fps=2.0)
    assert video.times == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert [tuple(frame.shape) for frame in video.frames] == [(3, 30, 40)] * 5


def test_an_array_and_a_tensor_are_the_same_video() -> None:
    array = np.stack([np.asarray(frame) for frame in frames(4)])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for given in (array, tensor):
        assert all(map(torch.equal, Video(given).frames, Video(frames(4)).frames))


@pytest.mark.parametrize(
    ("given", "fps", "error", "message"),
    [
        (frames(1), 1.0, ValueError, "got 1 frame"),
        ([*frames(2), *frames(1, (30, 40))], 1.0, ValueError, "frames of 2 sizes"),
        (np.zeros((4, 8, 8)), 1.0, ValueError, "frames of shape"),
        ("street.mp4", 1.0, TypeError, "Video.read"),
        (frames(2), 0.0, ValueError, "fps=0.0"),
        (frames(2), float("nan"), ValueError, "fps=nan"),
        (frames(2), "2", TypeError, "fps='2'"),
        (np.full((2, 8, 8, 3), 1000, np.uint16), 1.0, ValueError, "uint16.* floating point"),
        (torch.full((2, 3, 8, 8), 1000), 1.0, ValueError, "int64.* floating point"),
        ([Image.new("I;16", (8, 8), 1000)] * 2, 1.0, ValueError, "mode I;16.* floating point"),
    ],
)
def test_what_is_no_video_is_refused(
    given: object, fps: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Video(given, fps)  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_numbers() -> None:
    for fps in (np.float32(2), np.int64(2), Fraction(2)):
        assert Video(frames(2), fps).times == (0.0, 0.5)  # type: ignore[arg-type]


def test_a_folder_is_read_in_the_order_of_the_numbers_in_its_names(tmp_path: Path) -> None:
    for index, frame in enumerate(frames(12)):
        frame.save(tmp_path / f"frame_{index + 1}.png")
    video = Video.read(tmp_path, n_frames=8, fps=2.0)
    seen = [0, 1, 3, 4, 6, 7, 9, 10]
    assert [round(255 * float(frame[0, 0, 0])) for frame in video.frames] == [
        20 * index for index in seen
    ]
    assert video.times == tuple(index / 2 for index in seen)


def test_a_folder_is_spread_over_its_frames(tmp_path: Path) -> None:
    for index, frame in enumerate(frames(10)):
        frame.save(tmp_path / f"frame_{index:02d}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    video = Video.read(tmp_path, n_frames=5, fps=10.0)
    assert [round(255 * float(frame[0, 0, 0])) for frame in video.frames] == [0, 40, 80, 120, 160]
    assert video.times == (0.0, 0.2, 0.4, 0.6, 0.8) and video.fps == 5.0
    assert len(Video.read(tmp_path, n_frames=99).frames) == 10


def test_a_folder_without_frames_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 0 image"):
        Video.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Video.read(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="n_frames=1"):
        Video.read(tmp_path, n_frames=1)


def test_without_pyav_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "street.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"captum_mllm\[video\]"):
        Video.read(tmp_path / "street.mp4")


def test_a_file_is_read_at_evenly_spread_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for index in range(20):
            grey = np.full((48, 64, 3), 12 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    video = Video.read(path, n_frames=4)
    assert video.times == pytest.approx((0.0, 0.5, 1.0, 1.5))
    levels = [255 * float(frame.mean()) for frame in video.frames]
    assert levels == pytest.approx([0, 60, 120, 180], abs=6)
    uneven = Video.read(path, n_frames=8)
    assert uneven.times == pytest.approx((0.0, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5, 1.7))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        Video.read(tmp_path / "broken.mp4")


def test_a_file_is_turned_upright(tmp_path: Path) -> None:
    av = pytest.importorskip("av", minversion="18.1")
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        stream.set_display_rotation(90)
        top = np.zeros((48, 64, 3), dtype=np.uint8)
        top[:24] = 255
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(top, format="rgb24")))
        container.mux(stream.encode())
    frame = Video.read(tmp_path / "turned.mp4").frames[0]
    assert tuple(frame.shape) == (3, 64, 48)
    # A quarter turn to the left, by which the top is on the left.
    assert frame[..., :20].mean() > 0.95 and frame[..., 28:].mean() < 0.05


def test_the_last_group_repeats_the_last_frame() -> None:
    assert Clip(n_frames=5, fps=1.0, together=2).n_groups == 3
    assert Clip(n_frames=5, fps=1.0, together=2).frames == [0, 1, 2, 3, 4, 4]


def test_frames_are_named_by_times_that_differ() -> None:
    assert name_images(3, (0.0, 1.0, 2.0)) == ("0 s", "1 s", "2 s")
    assert name_images(2, (0.0, 1 / 30)) == ("0.00 s", "0.03 s")
    assert name_images(2) == ("image 1", "image 2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": [noise_video(2), noise_video(2)], "text": QUESTION}, "a video in a list"),
        ({"image": noise_video(2), "text": QUESTION, "explained": 0}, "leave out `explained`"),
        (
            {"image": noise_video(2), "messages": in_messages({"type": "image"})},
            "a video for 0 video part",
        ),
        (
            {
                "image": noise_video(2),
                "messages": in_messages({"type": "video"}, {"type": "image"}),
            },
            "and 1 image part",
        ),
        (
            {"image": frames(1)[0], "messages": in_messages({"type": "video"})},
            "without a video",
        ),
        (
            {"image": noise_video(2), "messages": in_messages({"type": "video", "path": "a"})},
            "which would not be seen",
        ),
    ],
)
def test_what_does_not_go_with_a_video_is_refused(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTextInput(**arguments)  # type: ignore[arg-type]


def test_without_tokens_for_videos_the_frames_are_a_list_of_images() -> None:
    mllm = MLLM(*shared("llava"))
    video = noise_video(3)
    images, query = mllm.prepare(ImageTextInput(video, QUESTION), target="a cat")
    listed = ImageTextInput(list(video.frames), QUESTION)
    of_list, query_of_list = mllm.prepare(listed, target="a cat")
    assert query.prompt == query_of_list.prompt and query.clip is None
    assert query.names == ("0.0 s", "0.5 s", "1.0 s")
    for one, other in zip(images, of_list, strict=True):
        assert torch.equal(one, other)


def test_a_result_has_a_map_and_a_time_for_each_frame(tmp_path: Path) -> None:
    mllm = MLLM(*shared("llava"))
    inp = ImageTextInput(noise_video(3), messages=in_messages({"type": "video"}))
    result = MLLMAttribution(LogitLens(mllm)).attribute(inp, target="a cat")
    assert len(result.image_attrs) == len(result.images) == 3
    assert result.times == (0.0, 0.5, 1.0)
    assert [part.image for part in result.prompt_parts][:3] == [0, 1, 2]
    assert [each["time"] for each in result.to_dict()["images"]] == [0.0, 0.5, 1.0]
    assert '"names":["0.0 s","0.5 s","1.0 s"]' in result.to_html()
    result.save(tmp_path / "video.safetensors")
    assert MLLMAttributionResult.load(tmp_path / "video.safetensors").times == result.times


def test_check_asks_for_an_image() -> None:
    report = MLLM(*shared("llava")).check(ImageTextInput(noise_video(2), QUESTION), scales=(1.0,))
    assert not report.passed and "expected an image" in str(report)
