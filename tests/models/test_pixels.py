"""The differentiable path gives what the processor gives."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.pixels import resize, to_pil, to_tensor
from tests.models.tiny_models import FAMILIES, shared

SIZES = [(120, 180), (200, 90), (97, 61), (56, 56)]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_differentiable_pixels_equal_the_processors(
    family: str, size: tuple[int, int], scale: float
) -> None:
    mllm = MLLM(*shared(family))
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand(3, *size, generator=generator).mul(255).round() / 255
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    if scale != 1:
        image = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bilinear")
    own = mllm.encode((image.requires_grad_(),), query).inputs["pixel_values"]
    with torch.no_grad():
        processors = mllm.encode((image,), query).inputs["pixel_values"]
    assert own.shape == processors.shape
    assert own.requires_grad
    # Back to pixels in [0, 1]: normalisation divides by about this much.
    difference = (own - processors).abs() * max(mllm.processor.image_processor.image_std)
    assert difference.mean() <= 1 / 255
    assert difference.max() <= 2 / 255


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pixel_that_the_model_sees_has_a_gradient(family: str) -> None:
    mllm = MLLM(*shared(family))
    picture = torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(2))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    image.requires_grad_()
    mllm(image, query)[0, 0, query.answer_ids[0]].backward()
    assert image.grad is not None
    assert (image.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("do_pad", [True, False])
@pytest.mark.parametrize("do_center_crop", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fixed_squares_follow_the_processors_options(
    size: tuple[int, int], do_center_crop: bool, do_pad: bool
) -> None:
    import transformers

    from tests.models.tiny_models import build

    model, processor = build("llava")
    square = {"height": 84, "width": 84}
    processor.image_processor = transformers.LlavaImageProcessorPil(
        size={"shortest_edge": 84} if do_center_crop or do_pad else square,
        crop_size=square,
        do_center_crop=do_center_crop,
        do_pad=do_pad,
    )
    mllm = MLLM(model, processor)
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    own = mllm.encode((image.requires_grad_(),), query).inputs["pixel_values"]
    with torch.no_grad():
        processors = mllm.encode((image,), query).inputs["pixel_values"]
    assert (own - processors).abs().mean() * 0.28 <= 1 / 255
    left, top, right, bottom = mllm.layouts(image, query)[0].pieces[0].box
    if do_pad:
        assert right - left == bottom - top == max(size)
    elif do_center_crop:
        assert right - left == pytest.approx(min(size), abs=0.02 * min(size))
    else:
        assert (left, top, right, bottom) == pytest.approx((0, 0, size[1], size[0]))


@pytest.mark.parametrize(
    "resample",
    [Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR],
)
def test_resizing_equals_that_of_pil_also_where_an_overshoot_is_cut(
    resample: Image.Resampling,
) -> None:
    rng = random.Random(0)
    for _ in range(100):
        height, width, *size = (rng.randint(20, 200) for _ in range(4))
        # Black and white pixels overshoot everywhere.
        picture = torch.tensor(rng.choices([0.0, 1.0], k=height * width)).expand(3, -1)
        picture = picture.unflatten(1, (height, width))
        resized = to_pil(picture).resize((size[1], size[0]), resample)
        own = resize(picture[None], (size[0], size[1]), resample)[0]
        assert (own - to_tensor(resized)).abs().max() <= 2 / 255, (height, width, size)


def test_eight_bits_survive_the_way_to_a_tensor_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    picture = to_pil(levels.float() / 255)
    assert torch.equal(to_tensor(picture).mul(255).round().to(torch.uint8), levels)
