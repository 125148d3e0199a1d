"""Images of every kind come out right, or are refused with a reason."""

from __future__ import annotations

import io
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_mllm import ImageTextInput
from tests.fuzz.contract import FUZZ, reasoned

MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
MODES += ["LAB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"]
SIDES = st.integers(0, 12)
SHAPES = st.one_of(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES, st.integers(0, 5)),
    st.tuples(st.integers(0, 5), SIDES, SIDES),
    st.tuples(st.integers(0, 2), SIDES, SIDES, st.sampled_from([1, 3, 4])),
    npst.array_shapes(min_dims=0, max_dims=5, max_side=6),
)
UNIT = st.floats(0, 1, width=32)
ARRAYS = st.one_of(
    npst.arrays(npst.scalar_dtypes(), SHAPES),
    npst.arrays(npst.integer_dtypes() | npst.unsigned_integer_dtypes(), SHAPES),
    npst.arrays(np.uint8, SHAPES),
    npst.arrays(np.float32, SHAPES, elements=UNIT),
)


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    size = (draw(st.integers(0, 9)), draw(st.integers(0, 9)))
    image = Image.new(draw(st.sampled_from(MODES)), size)
    if draw(st.booleans()) and image.mode not in ("La", "RGBa"):
        image.info["transparency"] = draw(st.sampled_from([0, 7, b"\x00\xff", (1, 2, 3), "no"]))
    if draw(st.integers(0, 9)) == 0:
        image.close()
    return image


@st.composite
def broken_files(draw: st.DrawFn) -> Image.Image | None:
    buffer = io.BytesIO()
    kind = draw(st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp"]))
    Image.new("RGB", (20, 14), "red").save(buffer, kind)
    data = bytearray(buffer.getvalue())
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    try:
        image = Image.open(io.BytesIO(bytes(data[: draw(st.integers(8, len(data)))])))
    except Exception:
        return None
    if draw(st.integers(0, 4)) == 0:
        image.close()
    return image


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    array = draw(ARRAYS.filter(lambda array: array.dtype.kind in "buif" and array.dtype != "g"))
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    tensor = torch.from_numpy(native.astype(np.float64) if native.dtype.char == "g" else native)
    changes = [lambda x: x, lambda x: x.to("meta"), lambda x: x.transpose(0, -1) if x.ndim else x]
    changes += [lambda x: x.to(torch.bfloat16), lambda x: x.to(torch.cfloat)]
    return draw(st.sampled_from(changes))(tensor)


JUNK = st.one_of(
    st.none(), st.integers(), st.text(), st.binary(), st.floats(), st.lists(st.integers())
)
IMAGES = st.one_of(ARRAYS, pil_images(), broken_files(), tensors(), JUNK)


@FUZZ
@given(image=IMAGES, several=st.booleans())
def test_an_image_is_read_or_refused(image: Any, several: bool) -> None:
    with reasoned() as outcome:
        inp = ImageTextInput([image, image] if several else image, "what ?")
    if outcome.refused is None:
        for read in inp.images:
            assert read.ndim == 3 and len(read) == 3
            assert read.dtype == torch.float32
            assert 0 <= read.min() <= read.max() <= 1


@FUZZ
@given(
    levels=npst.arrays(np.int32, (4, 5), elements=st.integers(-(2**31), 2**31 - 1)),
    bits=st.integers(1, 31),
)
def test_levels_keep_their_order(levels: np.ndarray, bits: int) -> None:
    levels = levels % 2**bits
    for image in (levels, Image.fromarray(levels.astype(np.int32))):
        with reasoned() as outcome:
            read = ImageTextInput(image, "what ?").images[0][0].double().numpy()
        assert outcome.refused is None
        order = np.argsort(levels, axis=None)
        assert (np.diff(read.ravel()[order]) >= 0).all()
        # Bright where the levels fill what they are taken for, else there is a warning.
        highest = levels.max()
        assert read.max() > 0.45 or outcome.warned or highest == 0


@FUZZ
@given(text=JUNK, messages=JUNK, explained=JUNK)
def test_arguments_of_other_types_are_refused(text: Any, messages: Any, explained: Any) -> None:
    image = Image.new("RGB", (9, 9))
    for arguments in (
        {"text": text},
        {"messages": messages},
        {"text": "what ?", "explained": explained},
        {"text": text, "messages": messages, "explained": explained},
    ):
        with reasoned():
            ImageTextInput(image, **arguments)
