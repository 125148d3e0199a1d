"""Families with tokens for videos: where the tokens of each group of frames lie, is proven."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mllm import MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution, TokenCam, Video
from captum_mllm.models.budget import estimate
from captum_mllm.models.families import placeholder_ids
from captum_mllm.models.hooks import hook
from captum_mllm.models.image_tokens import vision_tokens
from captum_mllm.models.layout import Layout, size_of
from captum_mllm.models.query import Query
from captum_mllm.models.towers import decoder_layers
from tests.models.tiny_videos import VIDEO_FAMILIES, noise_video, shared

QUESTION = "what is in the image ?"
SIZES = [(84, 112), (120, 64)]
SCALES = (0.5, 1.0, 1.5)
CELL = 28
# Many words, so that no change is missed because it happens to be orthogonal to one of them.
ANSWER = list(range(3, 67))


def opened(
    family: str, video: Video, target: Any = ANSWER, **generation: Any
) -> tuple[MLLM, tuple[Tensor, ...], Query]:
    mllm = MLLM(*shared(family))
    images, query = mllm.prepare(ImageTextInput(video, QUESTION), target=target, **generation)
    return mllm, images, query


def received(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> list[tuple[Layout, Tensor]]:
    """The layout of each group of frames, and what the language model receives for its tokens."""
    encoding = mllm.encode(images, query)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise StopIteration

    first = decoder_layers(mllm.model)[0]
    with torch.no_grad(), hook(first, keep, before=True), suppress(StopIteration):
        mllm.model(**encoding.inputs, use_cache=False)
    return [
        (layout, seen[0][:, positions].flatten(0, 1))
        for layout, positions in zip(encoding.layouts, encoding.image_positions, strict=True)
    ]


def box_of(layout: Layout, token: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a token's cell."""
    for piece in layout.pieces:
        if token < piece.n_tokens:
            break
        token -= piece.n_tokens
    left, top, right, bottom = piece.box
    across, down = (right - left) / piece.columns, (bottom - top) / piece.rows
    x, y = left + token % piece.columns * across, top + token // piece.columns * down
    return x, y, x + across, y + down


def scaled(images: tuple[Tensor, ...], scale: float) -> tuple[Tensor, ...]:
    size = [round(scale * length) for length in size_of(images[0])]
    return tuple(F.interpolate(image, size, mode="bilinear", antialias=True) for image in images)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_only_the_tokens_of_the_changed_group_move_and_most_where_it_is_changed(
    family: str, size: tuple[int, int]
) -> None:
    mllm, images, query = opened(family, noise_video(8, size))
    assert len(images) == 8 // (images[0].shape[1] // 3)
    generator = torch.Generator().manual_seed(1)
    corners = [(28, 28), (56, 0), (28, 0), (56, 28)]
    for scale in SCALES:
        before = received(mllm, scaled(images, scale), query)
        for turn, (y, x) in enumerate(corners):
            group = turn * len(images) // 4
            changed = [image.clone() for image in images]
            part = changed[group][..., y : y + CELL, x : x + CELL]
            part.copy_(torch.rand(part.shape, generator=generator))
            after = received(mllm, scaled(tuple(changed), scale), query)
            moved = [
                (new - old).norm(dim=-1) for (_, old), (_, new) in zip(before, after, strict=True)
            ]
            assert [bool(each.any()) for each in moved] == [
                place == group for place in range(len(images))
            ]
            left, top, right, bottom = box_of(after[group][0], int(moved[group].argmax()))
            # The token that moved most has to overlap the patch.
            assert left < scale * (x + CELL) and right > scale * x, (scale, turn)
            assert top < scale * (y + CELL) and bottom > scale * y, (scale, turn)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "internvl"])
def test_the_map_of_the_changed_group_moves_most(family: str) -> None:
    mllm, images, query = opened(family, noise_video(8))
    method = MSEA(LogitLens(mllm))

    def explain(images: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        return method.attribute(
            images, scales=SCALES, additional_forward_args=(query,), combine=False
        )

    before = explain(images)
    generator = torch.Generator().manual_seed(1)
    for group in (1, len(images) - 1):
        changed = [image.clone() for image in images]
        changed[group] = torch.rand(changed[group].shape, generator=generator)
        for old, new in zip(before, explain(tuple(changed)), strict=True):
            moved = [float((b - a).abs().max()) for a, b in zip(old, new, strict=True)]
            assert moved.index(max(moved)) == group


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_differentiable_pixels_are_those_of_the_processor(family: str) -> None:
    mllm, images, query = opened(family, noise_video(7, (70, 98)))
    expected = mllm.encode(images, query).inputs
    inputs = mllm.encode(tuple(image.requires_grad_() for image in images), query).inputs
    (name,) = (name for name in inputs if name.startswith("pixel_values"))
    # A level of 255 in units of the deviation that pixels are divided by.
    difference = (inputs[name].detach() - expected[name]).abs().mean()
    assert float(difference) < 1 / 255 / 0.22
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
    larger = scaled(images, 2.0)
    assert [layout.n_tokens for layout in mllm.layouts(*larger, query)] == [36] * 4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "glm4v", "internvl"])
def test_teacher_forcing_is_stepwise_generation(family: str) -> None:
    mllm, images, query = opened(family, noise_video(4), target=None, max_new_tokens=12)
    logits = mllm(*images, query)
    logits[..., placeholder_ids(mllm.model.config)] = -torch.inf
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


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_states_of_the_vision_tower_are_those_of_each_group(family: str) -> None:
    mllm, images, query = opened(family, noise_video(4, (64, 176)), target="a cat")
    method = TokenCam(mllm, 0, variant="grad_cam")
    for group in range(len(images)):
        seen = []
        for changed in (False, True):
            shown = [image.clone() for image in images]
            shown[group][..., 32:64, 120:152] = float(changed)
            encoding = mllm.encode(tuple(shown), query)
            states: list[Tensor] = []

            def keep(module: nn.Module, args: Any, output: Any, to: Any = states) -> None:
                to.append(output[0] if isinstance(output, tuple) else output)

            with torch.no_grad(), hook(method.layer, keep):
                mllm.model(**encoding.inputs, use_cache=False)
            (found,) = states
            n_states = found.flatten(0, -2).shape[0]
            config = mllm.model.config
            parts = vision_tokens(encoding, query, config, n_states)
            seen.append([part.gather(found)[0] for part in parts])
        moved = [(new - old).norm(dim=-1) for old, new in zip(*seen, strict=True)]
        peaks = [float(each.max()) for each in moved]
        assert peaks.index(max(peaks)) == group
        left, top, right, bottom = box_of(parts[group].layout, int(moved[group].argmax()))
        assert left < 152 and right > 120 and top < 64 and bottom > 32


@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v", "internvl", "llava_onevision", "smolvlm"])
def test_a_batch_of_videos_is_as_each_of_them(family: str) -> None:
    mllm, images, query = opened(family, noise_video(4), target="a cat")
    others = tuple(1 - image for image in images)
    with torch.no_grad():
        both = mllm(*(torch.cat(pair) for pair in zip(images, others, strict=True)), query)
        single = torch.cat([mllm(*images, query), mllm(*others, query)])
    torch.testing.assert_close(both, single, atol=1e-5, rtol=1e-4)


def test_the_cost_of_a_video_is_that_of_its_tokens() -> None:
    mllm, images, query = opened("qwen2_vl", noise_video(8))
    (found,) = estimate(mllm, ImageTextInput(noise_video(8), QUESTION), answer_tokens=64)
    assert found.image_tokens == sum(each.n_tokens for each in mllm.layouts(*images, query))
    assert found.tokens == mllm.encode(images, query).inputs["input_ids"].shape[1] + 1


def test_sampled_frames_are_not_taken_for_those_that_were_given() -> None:
    for family in ("qwen2_vl", "llava_onevision"):
        mllm, images, query = opened(family, noise_video(8), target="a cat")
        videos = copy(mllm.processor.video_processor)
        made = type(videos).__call__
        kind = type("Halved", (type(videos),), {})
        kind.__call__ = lambda self, given, made=made, **options: made(
            self, [video[::2] for video in given], **options
        )
        videos.__class__ = kind
        mllm = MLLM(mllm.model, copy(mllm.processor))
        mllm.processor.video_processor = videos
        with pytest.raises(RuntimeError, match="please report it"):
            mllm.encode(images, query)


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
