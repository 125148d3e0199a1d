"""The tiny models of families that take videos, each with its own video processor."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers as T

from captum_mllm import Video
from tests.models import tiny_families
from tests.models.tiny_models import QWEN_IMAGE, TinyModel

QWEN_VIDEO = QWEN_IMAGE.replace("image", "video")
GLM_VIDEO = "<|begin_of_video|><|video|><|end_of_video|>"


def _pixels(lowest: int, highest: int) -> dict[str, dict[str, int]]:
    return {"size": {"shortest_edge": lowest, "longest_edge": highest}}


def _qwen(name: str, patch: int, frames: int) -> Callable[[], Any]:
    cell = (2 * patch) ** 2 * frames
    return lambda: getattr(T, name)(
        **_pixels(cell, 1280 * cell), patch_size=patch, cap_pixels_per_frame=False
    )


def _glm(name: str) -> Callable[[], Any]:
    return lambda: getattr(T, name)(**_pixels(8 * 28 * 28, 8 * 28 * 28 * 4000))


def _square(name: str, size: int, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(T, name)(size={"height": size, "width": size}, **options)


# For each family its video processor, and what the chat template writes for a video.
VIDEO_FAMILIES: dict[str, tuple[Callable[[], Any], str]] = {
    "qwen2_vl": (_qwen("Qwen2VLVideoProcessor", 14, 1), QWEN_VIDEO),
    "qwen2_5_vl": (_qwen("Qwen2VLVideoProcessor", 14, 1), QWEN_VIDEO),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        (_qwen("Qwen3VLVideoProcessor", 16, 8), QWEN_VIDEO),
    ),
    "glm4v": (_glm("Glm4vVideoProcessor"), GLM_VIDEO),
    "glm4v_moe": (_glm("Glm4vVideoProcessor"), GLM_VIDEO),
    "glm46v": (_glm("Glm46VVideoProcessor"), GLM_VIDEO),
    "glm_ocr": (_glm("Glm46VVideoProcessor"), GLM_VIDEO),
    "exaone4_5": (_qwen("Qwen2VLVideoProcessor", 14, 1), QWEN_VIDEO),
    "hyperclovax_vision_v2": (_qwen("Qwen2VLVideoProcessor", 14, 1), QWEN_VIDEO),
    "internvl": (_square("InternVLVideoProcessor", 56), "<video>\n"),
    "llava_onevision": (_square("LlavaOnevisionVideoProcessor", 56), "<video>\n"),
    "llava_next_video": (
        lambda: T.LlavaNextVideoVideoProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        ),
        "<video>\n",
    ),
    "smolvlm": (
        lambda: T.SmolVLMVideoProcessor(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
        ),
        "<video>",
    ),
}


@cache
def shared(family: str) -> TinyModel:
    """One model with a processor that takes videos; skips where torchvision is missing."""
    pytest.importorskip("torchvision")
    model, processor = tiny_families.shared(family)
    if family == "llava_onevision":
        model, processor = tiny_families.build(family)
        # Its random projection hardly tells a patch from what other patches see of it.
        for name, parameter in model.model.vision_tower.named_parameters():
            if name.endswith("self_attn.out_proj.weight"):
                torch.nn.init.normal_(
                    parameter, std=0.002, generator=torch.Generator().manual_seed(0)
                )
    make, video = VIDEO_FAMILIES[family]
    whole = copy(processor)
    # The same without what leaves its video half out.
    whole.__class__ = getattr(T, type(processor).__name__)
    whole.video_processor = make()
    branch = "{% elif part['type'] == 'video' %}"
    whole.chat_template = processor.chat_template.replace(branch, branch + video)
    return model, whole


def noise_video(
    n_frames: int = 8, size: tuple[int, int] = (84, 112), fps: float = 2.0, seed: int = 0
) -> Video:
    """Frames of faint noise."""
    generator = torch.Generator().manual_seed(seed)
    frames = 0.5 + 0.1 * torch.rand(n_frames, 3, *size, generator=generator)
    return Video(frames, fps)
