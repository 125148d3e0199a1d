"""What was asked of the processor is what came back, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.layout import Layout
from tests.models.tiny_families import available, build

IMAGE = torch.rand(3, 112, 168, generator=torch.Generator().manual_seed(0))


def on_image_processor(processor: Any, name: str, value: Any) -> None:
    setattr(processor.image_processor, name, value)


def on_processor(processor: Any, name: str, value: Any) -> None:
    processor.images_kwargs = {**getattr(processor, "images_kwargs", {}), name: value}


def on_tokenizer(processor: Any, name: str, value: Any) -> None:
    processor.tokenizer.init_kwargs[name] = value


PLACES = [on_image_processor, on_processor, on_tokenizer]
places = pytest.mark.parametrize("set_option", PLACES)


def layouts(mllm: MLLM, scales: tuple[float, ...] = (0.5, 1.0, 2.0)) -> list[Layout]:
    image, query = mllm.prepare(ImageTextInput(IMAGE, "what ?"), target="a cat")
    found = []
    for scale in scales:
        size = [round(scale * length) for length in image.shape[-2:]]
        larger = image if scale == 1 else F.interpolate(image, size=size, mode="bilinear")
        found += mllm.layouts(larger, query)
        own = mllm.encode((larger.clone().requires_grad_(),), query).inputs["pixel_values"]
        with torch.no_grad():
            processors = mllm.encode((larger,), query).inputs["pixel_values"]
        spread = 1 if mllm.geometry.option("do_rescale") else 255
        assert (own - processors).abs().mean() < 0.03 * spread, scale
    return found


@places
@pytest.mark.parametrize("limit", [{"max_pixels": 28 * 28 * 9}, {"min_pixels": 28 * 28 * 400}])
@pytest.mark.filterwarnings("ignore:Passing `min_pixels`:FutureWarning")
def test_limits_on_pixels_move_with_the_scale(
    limit: dict[str, int], set_option: Callable[[Any, str, Any], None]
) -> None:
    model, processor = build("qwen2_vl")
    set_option(processor, *next(iter(limit.items())))
    half, native, double = (layout.n_tokens for layout in layouts(MLLM(model, processor)))
    assert half < native < double
    assert 2.5 < double / native < 5.5


FROZEN = [
    ("qwen2_vl", "do_resize", False),
    ("llava", "do_resize", False),
    ("internvl", "do_resize", False),
    ("llava_next", "do_pad", False),
    ("idefics3", "do_resize", False),
    ("paligemma", "do_resize", False),
    ("gemma3", "do_pan_and_scan", True),
    ("llava", "do_center_crop", False),
    ("llava", "crop_size", {"height": 56, "width": 84}),
    ("llava", "crop_size", {"height": 168, "width": 168}),
    ("deepseek_vl", "do_pad", False),
    ("deepseek_vl", "size", 14),
    ("paligemma", "size", {"height": 14, "width": 14}),
    ("qwen2_vl", "merge_size", 1),
    ("qwen2_vl", "patch_size", 16),
    ("qwen2_vl", "temporal_patch_size", 1),
    ("qwen2_vl", "max_pixels", 14 * 14),
    ("qwen2_vl", "size", {"shortest_edge": 28 * 28 * 40, "longest_edge": 28 * 28 * 9}),
    ("minicpmv4_6", "patch_size", 7),
    ("aya_vision", "size", {"height": 28, "width": 28}),
    ("internvl", "size", {"height": 14, "width": 14}),
    ("got_ocr2", "size", {"height": 64, "width": 64}),
    ("ovis2", "size", {"height": 14, "width": 14}),
]


@places
@pytest.mark.parametrize(("family", "name", "value"), FROZEN)
def test_options_that_no_layout_reflects_are_refused_by_name(
    family: str, name: str, value: Any, set_option: Callable[[Any, str, Any], None]
) -> None:
    model, processor = build(family)
    overruled = name in getattr(processor, "images_kwargs", {})
    set_option(processor, name, value)
    if overruled and set_option is on_image_processor:
        # The processor's own option goes before it, so it has no effect.
        assert layouts(MLLM(model, processor))
        return
    # A size that the model does not have is named by itself.
    with pytest.raises(ValueError, match=f"{name}|the model sees"):
        MLLM(model, processor)


def test_options_that_are_set_later_are_refused_too() -> None:
    model, processor = build("llava")
    mllm = MLLM(model, processor)
    image, query = mllm.prepare(ImageTextInput(IMAGE, "what ?"), target="a cat")
    processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="do_resize"):
        mllm(image, query)
    processor.image_processor.do_resize = True
    assert mllm(image, query).isfinite().all()


HONOURED = [
    ("llava", "do_pad", True),
    ("llava", "do_normalize", False),
    ("llava", "do_rescale", False),
    ("llava", "size", {"height": 84, "width": 84}),
    ("llava", "size", {"height": 84, "width": 112}),
    ("llava", "size", {"shortest_edge": 112}),
    ("internvl", "crop_to_patches", False),
    ("internvl", "max_patches", 4),
    ("internvl", "min_patches", 6),
    ("ovis2", "crop_to_patches", False),
    ("ovis2", "use_covering_area_grid", False),
    ("ovis2", "max_patches", 4),
    ("aya_vision", "max_patches", 2),
    ("idefics3", "do_image_splitting", False),
    ("idefics3", "size", {"longest_edge": 168}),
    ("idefics3", "size", {"longest_edge": 140}),
    ("lighton_ocr", "size", {"longest_edge": 112}),
    ("glm4v", "size", {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 18}),
    ("paddleocr_vl", "size", {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 9}),
    ("deepseek_vl", "min_size", 28),
    ("gemma3", "do_convert_rgb", False),
    ("paligemma", "image_mean", [0.1, 0.2, 0.3]),
    ("minicpmv4_6", "slice_mode", False),
    ("minicpmv4_6", "scale_resolution", 448),
]


@places
@pytest.mark.parametrize(("family", "name", "value"), HONOURED)
def test_other_options_are_reflected_in_layout_and_pixels(
    family: str, name: str, value: Any, set_option: Callable[[Any, str, Any], None]
) -> None:
    model, processor = build(family)
    set_option(processor, name, value)
    half, native, double = (layout.n_tokens for layout in layouts(MLLM(model, processor)))
    assert half <= native < double


def test_options_that_the_image_processor_does_not_take_are_refused_or_have_no_effect() -> None:
    model, processor = build("glm4v")
    expected = layouts(MLLM(model, processor))
    on_image_processor(processor, "max_pixels", 28 * 28)
    assert layouts(MLLM(model, processor)) == expected
    mllm = MLLM(model, processor)
    on_processor(processor, "max_pixels", 28 * 28)
    with pytest.raises(ValueError, match="unexpected keyword argument 'max_pixels'"):
        MLLM(model, processor)
    with pytest.raises(ValueError, match=r"max_pixels, which a Glm4v\w+ does not take"):
        layouts(mllm)


@pytest.mark.skipif(not available("gemma4"), reason="needs torchvision")
def test_a_strip_is_padded_as_the_processor_pads_it() -> None:
    mllm = MLLM(*build("gemma4"))
    # A row of tokens that fits into a smaller budget than its own.
    strip = torch.rand(3, 4, 282, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(strip, "what ?"), target="a cat")
    for shown in (image, F.interpolate(image, scale_factor=2.0, mode="bilinear")):
        own = mllm.encode((shown.clone().requires_grad_(),), query).inputs["pixel_values"]
        expected = mllm.encode((shown,), query).inputs["pixel_values"]
        torch.testing.assert_close(own, expected, atol=0.03, rtol=0)


SMALL = ["llama4", "minicpmv4_6", "ovis2", "cohere2_vision", "internvl", "smolvlm", "llava_next"]


@pytest.mark.parametrize("family", SMALL)
def test_images_within_one_tile_have_more_tokens_at_larger_scales(family: str) -> None:
    if not available(family):
        pytest.skip("needs torchvision or num2words")
    mllm = MLLM(*build(family))
    small = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(small, "what ?"), target="a cat")
    larger = F.interpolate(image, scale_factor=3.0, mode="bilinear")
    native, treble = mllm.layouts(image, query)[0], mllm.layouts(larger, query)[0]
    assert treble.n_tokens > native.n_tokens


def test_a_tile_of_one_number_is_refused_by_name() -> None:
    model, processor = build("aya_vision")
    processor.image_processor.size = 56
    with pytest.raises(ValueError, match="size=56, expected the height and the width"):
        MLLM(model, processor)
