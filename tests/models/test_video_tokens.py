"""Families with tokens for videos: where the tokens of each group of frames lie, is proven."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captum_mllm import MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution, Video
from captum_mllm.models.layout import size_of
from captum_mllm.models.query import Query
from tests.models.tiny_families import NEEDS
from tests.models.tiny_videos import VIDEO_FAMILIES, noise_video, shared

QUESTION = "what is in the image ?"
SIZES = [(84, 112), (120, 64)]
SCALES = (0.5, 1.0, 1.5)
CELL = 28
# Many words, so that no change is missed because it happens to be orthogonal to one of them.
ANSWER = list(range(3, 67))


def opened(
    family: str, video: Video, target: object = ANSWER
) -> tuple[MLLM, tuple[Tensor, ...], Query]:
    for package in ("torchvision", NEEDS.get(family, "torchvision")):
        pytest.importorskip(package)
    mllm = MLLM(*shared(family))
    images, query = mllm.prepare(ImageTextInput(video, QUESTION), target=target)
    return mllm, images, query


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_the_group_of_frames_that_is_changed_moves_most(family: str, size: tuple[int, int]) -> None:
    mllm, images, query = opened(family, noise_video(8, size))
    together = images[0].shape[1] // 3
    assert len(images) == 8 // together
    method = MSEA(LogitLens(mllm))

    def explain(images: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        return method.attribute(
            images, scales=SCALES, additional_forward_args=(query,), combine=False
        )

    before = explain(images)
    generator = torch.Generator().manual_seed(1)
    corners = [(28, 28), (56, 0), (28, 0), (56, 28)]
    # The others at the other size.
    for turn in range(SIZES.index(size), 4, 2):
        group = turn * len(images) // 4
        y, x = corners[turn]
        changed = [image.clone() for image in images]
        part = changed[group][..., y : y + CELL, x : x + CELL]
        part.copy_(torch.rand(part.shape, generator=generator))
        for scale, old, new in zip(SCALES, before, explain(tuple(changed)), strict=True):
            moved = [(b - a).abs().sum((0, 1)) for a, b in zip(old, new, strict=True)]
            most = max(range(len(moved)), key=lambda place: float(moved[place].max()))
            assert most == group, (family, size, scale, group)
            row, column = divmod(int(moved[group].argmax()), moved[group].shape[1])
            down, across = (
                length / count
                for length, count in zip(size_of(images[0]), moved[group].shape, strict=True)
            )
            # The token that moved most has to overlap the patch, or to touch it.
            assert row * down < y + CELL and (row + 1) * down >= y, (family, scale, group)
            assert column * across < x + CELL and (column + 1) * across >= x, (family, scale)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_differentiable_pixels_are_those_of_the_processor(family: str) -> None:
    mllm, images, query = opened(family, noise_video(7, (70, 98)))
    expected = mllm.encode(images, query).inputs
    inputs = mllm.encode(tuple(image.requires_grad_() for image in images), query).inputs
    (name,) = (name for name in inputs if name.startswith("pixel_values"))
    # A level of 255 in units of the deviation that pixels are divided by.
    assert float((inputs[name] - expected[name]).abs().mean()) < 1 / 255 / 0.22
    assert inputs[name].requires_grad
    for other in inputs.keys() - {name}:
        assert torch.equal(inputs[other], expected[other])


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_video_is_processed_as_the_family_does_it(family: str) -> None:
    video = noise_video(8)
    mllm, images, query = opened(family, video)
    own = mllm.processor(
        videos=[torch.stack(video.frames).mul(255).round().to(torch.uint8)],
        text=[query.prompt],
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[
            {"total_num_frames": 8, "fps": 2.0, "duration": 4.0, "frames_indices": list(range(8))}
        ],
        return_metadata=True,
    )
    found = mllm.encode(images, replace(query, answer_ids=query.answer_ids[:1])).inputs
    for name in ("input_ids", "pixel_values", "pixel_values_videos", "video_grid_thw"):
        assert (name in own) == (name in found)
        if name in own:
            assert torch.equal(found[name], own[name].to(found[name].dtype))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_limits_on_the_pixels_of_each_frame_move_along(family: str) -> None:
    mllm, _, _ = opened(family, noise_video(2))
    mllm = MLLM(mllm.model, copy(mllm.processor))
    videos = copy(mllm.processor.video_processor)
    # Nine tokens of a frame of Qwen3-VL; of all frames of Qwen2-VL, two of which share theirs.
    videos.cap_pixels_per_frame = True
    videos.max_video_tokens = 9 if family == "qwen3_vl" else 40
    mllm.processor.video_processor = videos
    images, query = mllm.prepare(ImageTextInput(noise_video(8, (128, 128)), QUESTION), target="a")
    assert [layout.n_tokens for layout in mllm.layouts(*images, query)] == [9] * 4
    larger = tuple(torch.nn.functional.interpolate(image, (256, 256)) for image in images)
    assert [layout.n_tokens for layout in mllm.layouts(*larger, query)] == [36] * 4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "glm4v", "internvl"])
def test_teacher_forcing_is_stepwise_generation(family: str) -> None:
    mllm, images, query = opened(family, noise_video(4), target=None)
    logits = mllm(*images, query)
    assert logits.argmax(-1)[0].tolist() == list(query.answer_ids)


def test_a_result_has_a_map_for_each_group_and_the_time_of_its_first_frame() -> None:
    mllm, _, _ = opened("qwen2_vl", noise_video(7))
    video = noise_video(7)
    result = MLLMAttribution(MSEA(LogitLens(mllm))).attribute(
        ImageTextInput(video, QUESTION), target="a cat", scales=(0.5, 1.0), reasons="exact"
    )
    assert result.times == (0.0, 1.0, 2.0, 3.0) and len(result.images) == 4
    assert result.reasons is not None
    assert result.reasons.groups == ("0 s", "1 s", "2 s", "3 s", "question", "answer")
    assert result.image_shares.sum(1).tolist() == pytest.approx([1.0] * len(result.output_tokens))


def test_a_template_without_videos_is_named() -> None:
    mllm, _, _ = opened("qwen2_vl", noise_video(4))
    mllm = MLLM(mllm.model, copy(mllm.processor))
    mllm.processor.chat_template = mllm.processor.chat_template.replace("video_pad", "pad")
    with pytest.raises(ValueError, match="does the chat template render parts of type 'video'"):
        mllm.prepare(ImageTextInput(noise_video(4), QUESTION), target="a cat")


def test_images_are_explained_as_before_beside_a_video_processor() -> None:
    mllm, _, query = opened("qwen2_vl", noise_video(4), target="a cat")
    inp = ImageTextInput(torch.rand(3, 56, 84), QUESTION)
    image, of_image = mllm.prepare(inp, target="a cat")
    assert image.shape == (1, 3, 56, 84) and of_image.clip is None
    with pytest.raises(ValueError, match=r"\(B, 6, H, W\)"):
        mllm(image, query)
