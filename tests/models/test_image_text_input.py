"""Pictures of every kind come in right, and bad ones are refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from captum_mllm import ImageTextInput

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
RGB = torch.from_numpy(LEVELS).permute(2, 0, 1).float() / 255


def read(picture: Any) -> torch.Tensor:
    return ImageTextInput(picture, "what ?").to_tensor()[0]


def test_rgb_arrays_and_tensors_are_the_same_picture() -> None:
    for picture in (Image.fromarray(LEVELS), LEVELS, RGB, RGB[None], RGB.double()):
        assert torch.equal(read(picture), RGB)


def test_grey_has_three_equal_channels() -> None:
    grey = read(Image.fromarray(LEVELS[..., 0]))
    assert torch.equal(grey, RGB[:1].expand(3, -1, -1))


def test_transparent_pixels_are_laid_on_white() -> None:
    alpha = np.full((6, 9, 1), 255, np.uint8)
    alpha[0] = 0
    picture = read(Image.fromarray(np.concatenate([LEVELS, alpha], 2)))
    assert torch.equal(picture[:, 0], torch.ones(3, 9))
    assert torch.equal(picture[:, 1:], RGB[:, 1:])


def test_a_palette_is_looked_up_and_its_transparency_too() -> None:
    colours = Image.fromarray(LEVELS).quantize(256)
    assert torch.equal(read(colours), read(colours.convert("RGB")))
    clear = Image.new("P", (4, 4), 0)
    clear.putpalette([10, 20, 30] * 256)
    clear.info["transparency"] = 0
    assert torch.equal(read(clear), torch.ones(3, 4, 4))


def test_sixteen_bits_are_scaled_not_cut() -> None:
    deep = np.array([[0, 257, 32896], [65535, 40000, 100]], np.uint16).repeat(2, 0)
    picture = read(Image.fromarray(deep))
    expected = torch.from_numpy((deep / 257).round() / 255).float()
    assert torch.equal(picture, expected.expand(3, -1, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, "png", exif=exif)
    turned = {
        1: lambda x: x,
        2: lambda x: x.flip(2),
        3: lambda x: x.flip(1, 2),
        4: lambda x: x.flip(1),
        5: lambda x: x.transpose(1, 2),
        6: lambda x: x.flip(1).transpose(1, 2),
        7: lambda x: x.flip(1, 2).transpose(1, 2),
        8: lambda x: x.flip(2).transpose(1, 2),
    }
    assert torch.equal(read(Image.open(buffer)), turned[orientation](RGB))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV", "RGBX", "I"])
def test_other_modes_come_out_as_rgb_in_range(mode: str) -> None:
    source = (
        Image.fromarray(LEVELS[..., 0]) if mode in ("1", "I", "LA") else Image.fromarray(LEVELS)
    )
    picture = read(source.convert(mode))
    assert picture.shape == (3, 6, 9)
    assert 0 <= picture.min() <= picture.max() <= 1


def truncated() -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    return Image.open(io.BytesIO(buffer.getvalue()[:900]))


BAD_PICTURES = {
    "1x1": (Image.new("RGB", (1, 1)), ValueError, "1 x 1 pixels"),
    "10,000 x 10": (Image.new("RGB", (10_000, 10)), ValueError, "10 x 10000 pixels"),
    "NaN": (torch.full((3, 6, 9), torch.nan), ValueError, "NaN"),
    "above one": (RGB * 255, ValueError, "expected \\[0, 1\\]"),
    "below zero": (RGB - 0.5, ValueError, "expected \\[0, 1\\]"),
    "integers": (torch.ones(3, 6, 9, dtype=torch.uint8), ValueError, "dtype torch.uint8"),
    "batch": (torch.rand(2, 3, 6, 9), ValueError, "one picture at a time"),
    "channels last": (torch.rand(6, 9, 3), ValueError, "expected \\(3, H, W\\)"),
    "float array": (LEVELS / 255, ValueError, "dtype float64"),
    "path": ("street.jpg", TypeError, "type str, .* read by PIL.Image.open"),
    "truncated": (truncated(), ValueError, "cannot be read"),
    "float mode": (Image.new("F", (9, 6)), ValueError, "mode F"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_refused(name: str) -> None:
    picture, error, message = BAD_PICTURES[name]
    with pytest.raises(error, match=message):
        ImageTextInput(picture, "what ?")


IMAGE = {"type": "image"}
BAD_PROMPTS = {
    "empty": (RGB, {"text": ""}, "the prompt is empty"),
    "blank": (RGB, {"text": " \n"}, "the prompt is empty"),
    "none": (RGB, {}, "either as `text` or as `messages`"),
    "two pictures, one part": (
        [RGB, RGB],
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "hi"}]}]},
        "2 picture\\(s\\) for 1 image part",
    ),
    "no part": (RGB, {"messages": [{"role": "user", "content": "hi"}]}, "for 0 image part"),
    "explained": (RGB, {"text": "what ?", "explained": 1}, "explained=1"),
    "no content": (RGB, {"messages": [{"role": "user"}]}, "expected a dict of role and content"),
    "no role": (RGB, {"messages": [{"content": "hi"}]}, "expected a dict of role and content"),
    "no dict": (RGB, {"messages": ["hi"]}, "got the message 'hi'"),
    "content None": (
        RGB,
        {"messages": [{"role": "user", "content": None}]},
        "content of type NoneType",
    ),
    "part without text": (
        RGB,
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text"}]}]},
        "got the part {'type': 'text'}",
    ),
    "part with a number": (
        RGB,
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": 5}]}]},
        "got the part",
    ),
    "video": (
        RGB,
        {"messages": [{"role": "user", "content": [{"type": "video"}, *[IMAGE, "hi"]]}]},
        "got the part {'type': 'video'}",
    ),
    "no messages": (RGB, {"messages": []}, "the prompt is empty"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_are_refused(name: str) -> None:
    picture, arguments, message = BAD_PROMPTS[name]
    with pytest.raises(ValueError, match=message):
        ImageTextInput(picture, **arguments)


def test_it_is_an_interpretable_input() -> None:
    inp = ImageTextInput([RGB, RGB.flip(1)], "which ?", explained=1)
    assert inp.n_itp_features == 3 * 6 * 9
    assert inp.values == ["image", "which ?"]
    first, second = inp.to_model_input(torch.zeros(1, 3, 6, 9))
    assert torch.equal(first[0], RGB)
    assert not second.any()
    attributions = torch.ones(1, 3, 6, 9)
    assert inp.format_attr(attributions) is attributions


@pytest.mark.parametrize("arguments", [{"text": 5}, {"text": ["hi"]}, {"messages": "hi"}])
def test_prompts_of_another_type_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="type"):
        ImageTextInput(RGB, **arguments)


def test_a_later_change_of_the_users_picture_changes_nothing() -> None:
    tensor, array = RGB.clone(), LEVELS.copy()
    inputs = [ImageTextInput(tensor, "what ?"), ImageTextInput(array, "what ?")]
    tensor.zero_()
    array[:] = 0
    for inp in inputs:
        assert torch.equal(inp.images[0], RGB)
