"""Images of every kind come in right, and bad ones are refused."""

from __future__ import annotations

import io
import warnings
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


def read(image: Any) -> torch.Tensor:
    return ImageTextInput(image, "what ?").to_tensor()[0]


def test_rgb_arrays_and_tensors_are_the_same_image() -> None:
    for image in (Image.fromarray(LEVELS), LEVELS, RGB, RGB[None], RGB.double()):
        assert torch.equal(read(image), RGB)


def test_grey_has_three_equal_channels() -> None:
    grey = read(Image.fromarray(LEVELS[..., 0]))
    assert torch.equal(grey, RGB[:1].expand(3, -1, -1))


def test_transparent_pixels_are_laid_on_white() -> None:
    alpha = np.full((6, 9, 1), 255, np.uint8)
    alpha[0] = 0
    image = read(Image.fromarray(np.concatenate([LEVELS, alpha], 2)))
    assert torch.equal(image[:, 0], torch.ones(3, 9))
    assert torch.equal(image[:, 1:], RGB[:, 1:])


def test_a_palette_is_looked_up_and_its_transparency_too() -> None:
    colours = Image.fromarray(LEVELS).quantize(256)
    assert torch.equal(read(colours), read(colours.convert("RGB")))
    clear = Image.new("P", (4, 4), 0)
    clear.putpalette([10, 20, 30] * 256)
    clear.info["transparency"] = 0
    assert torch.equal(read(clear), torch.ones(3, 4, 4))


def test_sixteen_bits_are_scaled_not_cut() -> None:
    deep = np.array([[0, 257, 32896], [65535, 40000, 100]], np.uint16).repeat(2, 0)
    image = read(Image.fromarray(deep))
    expected = torch.from_numpy((deep / 257).round() / 255).float()
    assert torch.equal(image, expected.expand(3, -1, -1))


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


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
MODES += ["LAB", "I", "I;16", "I;16L", "I;16B", "I;16N"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_shows_the_same_image(mode: str) -> None:
    colour = Image.fromarray(np.kron(LEVELS[:2, :3], np.ones((4, 4, 1), np.uint8)))
    if mode in ("1", "L", "LA", "La", "PA") or mode.startswith("I"):
        colour = colour.convert("L")
    through = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode, colour.mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette = Image.Palette.ADAPTIVE
        image = read(colour.convert(through).convert(mode, palette=palette))
    expected = read(colour)
    if mode == "1":
        expected = read(colour.convert("1").convert("L"))
    # YCbCr, LAB and HSV round each channel to 8 bits on the way.
    rounding = 0.06 if mode in ("YCbCr", "HSV", "LAB") else 0
    assert (image - expected).abs().max() <= rounding


def test_floating_point_is_taken_within_zero_and_one() -> None:
    unit = Image.fromarray((LEVELS[..., 0] / 255).astype(np.float32))
    assert unit.mode == "F"
    assert torch.equal(read(unit), RGB[:1].expand(3, -1, -1))


GREY = np.tile(np.arange(256), (64, 1))
DEPTHS = {
    "8 bits in mode I": (GREY, np.int32),
    "10 bits in I;16": (GREY * 4, np.uint16),
    "12 bits in I;16": (GREY * 16, np.uint16),
    "14 bits in I;16": (GREY * 64, np.uint16),
    "16 bits in I;16": (GREY * 257, np.uint16),
    "16 bits in mode I": (GREY * 257, np.int32),
    "31 bits in mode I": (GREY * 2**23, np.int32),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_the_levels_tell_how_bright_white_is(name: str) -> None:
    levels, dtype = DEPTHS[name]
    grey = levels.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (Image.fromarray(grey), grey, torch.from_numpy(grey.astype(np.int64))):
            assert (read(image)[0] - torch.arange(256) / 255).abs().max() < 0.005


@pytest.mark.parametrize("highest", [1, 100, 300, 1100, 5000, 20_000])
def test_levels_that_fill_less_than_half_of_a_depth_are_reported(highest: int) -> None:
    levels = np.linspace(0, highest, 64).round().astype(np.int32).reshape(8, 8)
    with pytest.warns(UserWarning, match=rf"mode I with levels up to {highest}, taken for levels"):
        read(Image.fromarray(levels))


@pytest.mark.parametrize("lowest", [-1, -1024, -(2**31)])
def test_levels_below_zero_are_refused_with_the_remedy(lowest: int) -> None:
    levels = np.linspace(lowest, 127, 64).astype(np.int32).reshape(8, 8)
    for image in (Image.fromarray(levels), levels, torch.from_numpy(levels)):
        with pytest.raises(ValueError, match=rf"levels from {lowest} to 127.*a CT's window"):
            read(image)


def test_transparent_levels_of_sixteen_bits_are_white() -> None:
    deep = Image.fromarray(np.array([[0, 40_000], [500, 65_535]], np.uint16))
    deep.info["transparency"] = 500
    expected = torch.tensor([[0, 40_000 / 257], [255, 255]]).round() / 255
    assert torch.equal(read(deep), expected.expand(3, -1, -1))


@pytest.mark.parametrize("dtype", "?bBhHiIlLqQefdg")
def test_arrays_of_every_dtype_show_the_same_image(dtype: str) -> None:
    levels = LEVELS // 255 * 255 if dtype == "?" else LEVELS
    if dtype == "b":
        levels = LEVELS // 2
    kind = np.dtype(dtype)
    values = levels / 255 if kind.kind == "f" else levels
    expected = torch.from_numpy(levels / (127.5 if dtype == "b" else 255)).permute(2, 0, 1).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if dtype == "b" else "error")
        image = read(values.astype(kind))
    if dtype == "b":
        expected = expected / 2
    assert (image - expected).abs().max() < (1e-3 if dtype == "e" else 1e-6)


def test_arrays_of_every_layout_show_the_same_image() -> None:
    wide = np.zeros((12, 18, 3), np.uint8)
    wide[::2, ::2] = LEVELS
    frozen = LEVELS.copy()
    frozen.setflags(write=False)
    layouts = {
        "Fortran": np.asfortranarray(LEVELS),
        "strided": wide[::2, ::2],
        "negative strides": LEVELS[::-1, :, ::-1].copy()[::-1, :, ::-1],
        "read only": frozen,
        "foreign byte order": (LEVELS.astype(np.uint16) * 257).astype(">u2"),
        "batch of one": LEVELS[None],
        "masked, but nowhere": np.ma.MaskedArray(LEVELS),
        "opaque": np.concatenate([LEVELS, np.full((6, 9, 1), 255, np.uint8)], 2),
    }
    for array in layouts.values():
        assert torch.equal(read(array), RGB)
    assert torch.equal(read(LEVELS[..., 0]), RGB[:1].expand(3, -1, -1))
    assert torch.equal(read(LEVELS[..., :1]), RGB[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_tensors_of_every_dtype_show_the_same_image(dtype: torch.dtype) -> None:
    levels = torch.from_numpy(LEVELS).permute(2, 0, 1)
    values = levels.to(dtype) if not dtype.is_floating_point else (levels / 255).to(dtype)
    coarse = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)
    for tensor in (values, values[None], values.requires_grad_(dtype.is_floating_point)):
        image = read(tensor)
        assert (image - RGB).abs().max() < coarse
        assert not image.requires_grad


def test_transparent_tensors_are_laid_on_white() -> None:
    tensor = torch.cat([RGB, torch.linspace(0, 1, 54).view(1, 6, 9)])
    expected = tensor[:3] * tensor[3:] + 1 - tensor[3:]
    assert torch.allclose(read(tensor), expected)
    assert torch.allclose(read(tensor.permute(1, 2, 0).numpy()), expected)


def test_an_image_of_several_frames_says_which_one_is_seen() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("L", (6, 9), level) for level in (0, 100, 200)]
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:])
    animation = Image.open(buffer)
    animation.seek(1)
    with pytest.warns(UserWarning, match="an image of 3 frames, of which the model sees frame 1"):
        image = read(animation)
    assert abs(float(image.mean()) - 100 / 255) < 0.02


def truncated() -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    return Image.open(io.BytesIO(buffer.getvalue()[:900]))


def closed() -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(LEVELS).save(buffer, "png")
    with Image.open(buffer) as image:
        pass
    return image


def closed_by_hand() -> Image.Image:
    image = Image.fromarray(LEVELS)
    image.close()
    return image


def odd_transparency() -> Image.Image:
    image = Image.fromarray(LEVELS)
    image.info["transparency"] = b"\x00\xff"
    return image


BAD_IMAGES = {
    "odd transparency": (odd_transparency(), ValueError, "mode RGB cannot be converted to RGB"),
    "1x1": (Image.new("RGB", (1, 1)), ValueError, "1 x 1 pixels"),
    "10,000 x 10": (Image.new("RGB", (10_000, 10)), ValueError, "10 x 10000 pixels"),
    "NaN": (torch.full((3, 6, 9), torch.nan), ValueError, "NaN"),
    "above one": (RGB * 255, ValueError, "expected \\[0, 1\\]"),
    "below zero": (RGB - 0.5, ValueError, "expected \\[0, 1\\]"),
    "8-bit levels as floats": (
        LEVELS.astype(np.float32),
        ValueError,
        "dtype float32 .* from 0 to .* 8-bit levels: divide them by 255",
    ),
    "normalised": (RGB * 4 - 2, ValueError, "from -2 to 1.*look normalised"),
    "batch": (torch.rand(2, 3, 6, 9), ValueError, "one image at a time"),
    "batch of arrays": (np.zeros((2, 6, 9, 3)), ValueError, "one image at a time"),
    "channels last": (torch.rand(6, 9, 3), ValueError, "permute\\(2, 0, 1\\)"),
    "channels first": (np.zeros((3, 6, 9)), ValueError, "transpose\\(1, 2, 0\\)"),
    "complex": (np.zeros((6, 9), complex), TypeError, "dtype complex128"),
    "text": (np.full((6, 9), "x"), TypeError, "dtype <U1"),
    "objects": (np.full((6, 9), None), TypeError, "dtype object"),
    "masked": (np.ma.masked_less(LEVELS, 9), ValueError, "masked pixels"),
    "empty": (np.zeros((0, 9, 3)), ValueError, "0 x 9 pixels"),
    "empty tensor": (torch.zeros(3, 0, 0), ValueError, "0 x 0 pixels"),
    "complex tensor": (torch.zeros(3, 6, 9, dtype=torch.cfloat), TypeError, "complex64"),
    "sparse": (RGB.to_sparse(), TypeError, "sparse"),
    "meta": (RGB.to("meta"), ValueError, "holds no pixels"),
    "path": ("street.jpg", TypeError, "type str, .* read by PIL.Image.open"),
    "nothing": (None, TypeError, "type NoneType"),
    "no image": ([], ValueError, "got no image"),
    "truncated": (truncated(), ValueError, "cannot be read"),
    "used after its with": (closed(), ValueError, "still open\\? An image opened in a `with`"),
    "closed": (closed_by_hand(), ValueError, "cannot be read.*still open"),
    "floats of levels": (
        Image.fromarray(LEVELS[..., 0]).convert("F"),
        ValueError,
        "mode F with values .* 8-bit",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused(name: str) -> None:
    image, error, message = BAD_IMAGES[name]
    with pytest.raises(error, match=message):
        ImageTextInput(image, "what ?")


IMAGE = {"type": "image"}
TEXT = [{"type": "text", "text": "what ?"}]
BAD_PROMPTS = {
    "empty": (RGB, {"text": ""}, "the prompt is empty"),
    "blank": (RGB, {"text": " \n"}, "the prompt is empty"),
    "none": (RGB, {}, "either as `text` or as `messages`"),
    "two images, one part": (
        [RGB, RGB],
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "hi"}]}]},
        "2 image\\(s\\) for 1 image part",
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
        {"messages": [{"role": "user", "content": [{"type": "video"}, *TEXT]}]},
        "got a part of type 'video' without a video",
    ),
    "role of numbers": (RGB, {"messages": [{"role": 5, "content": [IMAGE, *TEXT]}]}, "the role 5"),
    "half a character": (RGB, {"text": "what \ud83d ?"}, "lone surrogates"),
    "nothing to continue": (
        RGB,
        {
            "messages": [
                {"role": "user", "content": [IMAGE, *TEXT]},
                {"role": "assistant", "content": " "},
            ]
        },
        "no text to continue",
    ),
    "no messages": (RGB, {"messages": []}, "the prompt is empty"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_are_refused(name: str) -> None:
    image, arguments, message = BAD_PROMPTS[name]
    with pytest.raises(ValueError, match=message):
        ImageTextInput(image, **arguments)


def test_the_explained_image_is_one_of_them() -> None:
    inp = ImageTextInput([RGB, RGB.flip(1)], "which ?", explained=1)
    assert torch.equal(inp.to_tensor()[0], RGB.flip(1))
    with pytest.raises(TypeError, match="explained='first'"):
        ImageTextInput(RGB, "which ?", explained="first")  # type: ignore[arg-type]


def test_what_a_part_would_not_show_is_refused() -> None:
    for part in ({**IMAGE, "url": "a.png"}, {**IMAGE, "image": RGB}, {**IMAGE, "text": "a star"}):
        with pytest.raises(ValueError, match="which would not be seen"):
            ImageTextInput(RGB, messages=[{"role": "user", "content": [part, *TEXT]}])
    # As tables of messages fill their columns.
    filled = [{**IMAGE, "text": None}, {**TEXT[0], "image": None}]
    inp = ImageTextInput(RGB, messages=[{"role": "user", "content": filled}])
    assert inp.messages == [{"role": "user", "content": [IMAGE, *TEXT]}]


@pytest.mark.parametrize("arguments", [{"text": 5}, {"text": ["hi"]}, {"messages": "hi"}])
def test_prompts_of_another_type_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="type"):
        ImageTextInput(RGB, **arguments)


def test_a_later_change_of_the_users_image_changes_nothing() -> None:
    tensor, array = RGB.clone(), LEVELS.copy()
    inputs = [ImageTextInput(tensor, "what ?"), ImageTextInput(array, "what ?")]
    tensor.zero_()
    array[:] = 0
    for inp in inputs:
        assert torch.equal(inp.images[0], RGB)
