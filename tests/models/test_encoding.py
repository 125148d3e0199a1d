"""Each image of a prompt at its own scale, and what the processor is asked for only once."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from captum_mllm.models.encoding import TokenCache
from captum_mllm.models.processing import _in_prompt
from tests.models.tiny_families import shared as later
from tests.models.tiny_models import FAMILIES, build, shared

MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}],
    }
]


def picture(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).float() / 255


def limited(family: str) -> MLLM:
    """With limits on the number of pixels that the images of this file reach."""
    model, processor = build(family)
    if family.startswith("qwen"):
        cell = processor.image_processor.patch_size * 2
        processor.image_processor.size = {
            "shortest_edge": cell * cell * 4,
            "longest_edge": cell * cell * 12,
        }
    return MLLM(model, processor)


def pixels_of(mllm: MLLM, encoding: Any, index: int) -> Tensor:
    """The pixels that the model gets of one of the images, of the first row."""
    inputs = encoding.inputs
    if "image_grid_thw" in inputs:
        counts = inputs["image_grid_thw"].prod(-1).tolist()
    else:
        counts = [len(layout.pieces) // encoding.windows for layout in encoding.layouts]
    start = sum(counts[:index])
    return inputs["pixel_values"][start : start + counts[index]]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("explained", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_of_a_image_leaves_the_others_as_they_are(
    family: str, explained: int, differentiable: bool
) -> None:
    mllm = limited(family)
    images = [picture(84, 140, 0), picture(168, 112, 1)]
    inp = ImageTextInput(images, messages=MESSAGES, explained=explained)
    image, query = mllm.prepare(inp, target="a cat")
    other = 1 - explained
    counts, others = [], []
    for scale in (0.5, 1.0, 2.0):
        scaled = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear")
        scaled = scaled.detach().requires_grad_(differentiable)
        encoding = mllm.encode((scaled,), query)
        assert len(encoding.image_positions[explained]) * encoding.windows == (
            encoding.layouts[explained].n_tokens
        )
        counts.append(encoding.layouts[explained].n_tokens)
        others.append((len(encoding.image_positions[other]), pixels_of(mllm, encoding, other)))
        assert mllm(scaled, query).isfinite().all()
    assert counts[0] <= counts[1] < counts[2]
    for count, pixels in others[1:]:
        assert count == others[0][0]
        assert torch.equal(pixels, others[0][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_images_at_two_scales_equal_each_at_its_own(family: str) -> None:
    mllm = limited(family)
    images = [picture(84, 140, 0), picture(168, 112, 1)]
    both, query = mllm.prepare(ImageTextInput(images, messages=MESSAGES), target="a cat")
    half = F.interpolate(both[1], scale_factor=0.5, mode="bilinear")
    encoding = mllm.encode((both[0], half), query)
    for index, alone in enumerate((both[0], half)):
        single = mllm.prepare(ImageTextInput(images[index], "which ?"), target="a cat")[1]
        expected = mllm.encode((alone,), single).inputs["pixel_values"]
        torch.testing.assert_close(pixels_of(mllm, encoding, index), expected, rtol=0, atol=0)


def test_a_batch_of_images_at_two_scales_equals_single_ones() -> None:
    mllm = limited("qwen2_vl")
    inp = ImageTextInput(
        [picture(84, 140, 0), picture(168, 112, 1)], messages=MESSAGES, explained=0
    )
    image, query = mllm.prepare(inp, target="a cat")
    image = F.interpolate(image, scale_factor=2.0, mode="bilinear")
    batch = torch.cat([image, image.flip(-1)])
    singles = torch.cat([mllm(part, query) for part in batch.split(1)])
    torch.testing.assert_close(mllm(batch, query), singles, rtol=0, atol=1e-5)


def test_images_that_stand_side_by_side_are_told_apart() -> None:
    model, processor = build("llava")
    processor.chat_template = processor.chat_template.replace("<image>\n", "<image>")
    mllm = MLLM(model, processor)
    images = [picture(84, 84, seed) for seed in range(4)]
    content = [{"type": "image"}] * 4 + [{"type": "text", "text": "which ?"}]
    inp = ImageTextInput(images, messages=[{"role": "user", "content": content}], explained=2)
    image, query = mllm.prepare(inp, target="a cat")
    positions = mllm.encode((image,), query).image_positions
    assert [len(part) for part in positions] == [36] * 4
    assert torch.cat(positions).diff().eq(1).all()


def counting(family: str, height: int = 84) -> tuple[MLLM, Any, Tensor, Query]:
    """A model whose processor counts how often it, or a copy of it, is called."""
    model, processor = shared(family)
    counted: list[None] = []

    class Counting(type(processor)):  # type: ignore[misc]
        calls = property(lambda _: len(counted))

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            counted.append(None)
            return super().__call__(*args, **kwargs)

    counter = object.__new__(Counting)
    vars(counter).update(vars(processor))
    mllm = MLLM(model, counter)
    image, query = mllm.prepare(ImageTextInput(picture(height, 112, 0), "what ?"), target="a cat")
    return mllm, counter, image, query


@pytest.mark.parametrize("family", FAMILIES)
def test_with_gradients_the_processor_runs_once_for_each_shape(family: str) -> None:
    mllm, counter, image, query = counting(family)
    method = IntegratedGradients(mllm)
    arguments = {"target": (0, 5), "additional_forward_args": (query,), "n_steps": 7}
    arguments["internal_batch_size"] = 1
    first = method.attribute(image, **arguments)
    calls = counter.calls
    assert torch.equal(method.attribute(image, **arguments), first)
    # Captum asks for the value at the baseline and at the image besides.
    assert calls <= 1 + 2
    assert counter.calls <= calls + 2
    larger = F.interpolate(image, scale_factor=2.0).requires_grad_()
    before = counter.calls
    kept = mllm(larger, query)
    assert counter.calls == before + 1
    assert torch.equal(mllm(larger, query), kept)
    assert counter.calls == before + 1


def test_what_is_kept_is_not_taken_for_another_question_or_other_settings() -> None:
    mllm, _, image, query = counting("qwen2_vl")
    _, other = mllm.prepare(ImageTextInput(picture(84, 112, 0), "where is it ?"), target="a cat")
    image.requires_grad_()
    mllm(image, query)
    own = mllm.encode((image,), other)
    with torch.no_grad():
        expected = mllm.encode((image,), other)
    assert torch.equal(own.inputs["input_ids"], expected.inputs["input_ids"])
    size = dict(mllm.processor.image_processor.size)
    try:
        mllm.processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 784 * 4}
        assert mllm.encode((image,), query).layouts[0].n_tokens <= 4
    finally:
        mllm.processor.image_processor.size = size
    assert mllm.encode((image,), query).layouts[0].n_tokens == 12


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_one_size_share_what_is_read_of_the_question(family: str, scale: float) -> None:
    mllm, counter, image, query = counting(family)
    size = [round(side * scale) for side in image.shape[2:]]
    images = [picture(*size, seed)[None] for seed in (1, 2, 3)]
    expected = [mllm.encode((each,), query) for each in images]
    before = counter.calls
    with mllm.remember():
        found = [mllm.encode((each,), query) for each in images]
    # That of InternVL has a hand in the pixels, so it runs for each image.
    assert counter.calls == before + (3 if family == "internvl" else 1)
    for one, other in zip(found, expected, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        for name, value in one.inputs.items():
            assert torch.equal(value, other.inputs[name]), name
        assert one.layouts == other.layouts
        assert torch.equal(one.text_positions, other.text_positions)
        assert torch.equal(torch.cat(one.image_positions), torch.cat(other.image_positions))
    pixels = [each.inputs["pixel_values"] for each in found]
    assert not torch.equal(pixels[0], pixels[1])


def test_nothing_is_shared_where_an_image_processor_looks_at_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mllm, counter, image, query = counting("llava")
    kind = type(mllm.processor.image_processor)
    own = kind.__call__

    def with_darkest(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        made = own(self, images, *args, **kwargs)
        made["darkest"] = made["pixel_values"].flatten(1).amin(1)
        return made

    monkeypatch.setattr(kind, "__call__", with_darkest)
    # One has a single level, so that its darkest pixel is another.
    images = [image, torch.full_like(image, 0.5)]
    before = counter.calls
    with mllm.remember():
        for each in images:
            found = mllm.encode((each,), query).inputs["darkest"]
            assert found == each.new_tensor(found.item())
    assert counter.calls == before + 2


def test_only_a_few_shapes_are_kept_and_no_pixels() -> None:
    mllm, _, image, query = counting("qwen2_vl", height=140)
    for height in range(56, 140, 4):
        mllm(image[:, :, :height].detach().requires_grad_(), query)
    assert len(mllm.backbone._tokens) == TokenCache.SIZE
    for processed in mllm.backbone._tokens.values():
        assert processed.inputs["pixel_values"].is_meta


def test_the_shape_that_was_not_used_for_longest_is_forgotten() -> None:
    mllm, counter, image, query = counting("qwen2_vl", height=140)

    def run(height: int) -> int:
        before = counter.calls
        mllm(image[:, :, :height].detach().requires_grad_(), query)
        return counter.calls - before

    heights = range(56, 56 + 4 * TokenCache.SIZE, 4)
    assert [run(height) for height in heights] == [1] * TokenCache.SIZE
    assert run(56) == 0
    assert run(136) == 1
    assert run(56) == 0
    assert run(60) == 1


def test_half_precision_images_lose_nothing_on_the_way_to_the_pixels() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    grey = Image.new("RGB", (84, 84), (77, 77, 77))
    image, query = mllm.prepare(ImageTextInput(grey, "what ?"), target="a cat")
    for dtype, error in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-6)):
        given = image.to(dtype).requires_grad_()
        own = mllm.encode((given,), query).inputs["pixel_values"]
        expected = mllm.encode((image.requires_grad_(),), query).inputs["pixel_values"]
        assert own.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(own, expected, rtol=0, atol=error)


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("<i>what ?", "<i>what ?\n"),
        ("what ?", "<b>what ?"),
        ("a b c", "a  b c!"),
        ("same", "same"),
        ("", "\n"),
    ],
)
def test_places_of_a_text_lie_in_the_prompt_that_it_was_made_of(prompt: str, written: str) -> None:
    places = _in_prompt(prompt, written).tolist()
    assert len(places) == len(written) + 1
    assert places == sorted(places)
    assert places[-1] == len(prompt)
    kept = [written[place] for place in range(len(written)) if places[place + 1] > places[place]]
    assert "".join(kept) == prompt


@pytest.mark.parametrize("family", ["glm4v", "paddleocr_vl"])
def test_an_oblong_image_that_the_processor_enlarges_is_at_the_scale_asked_for(
    family: str,
) -> None:
    mllm = MLLM(*later(family))
    inp = ImageTextInput(picture(20, 900, 0), "what is it ?")
    (piece,) = mllm.layouts(*mllm.prepare(inp, target="a cat"))[0].pieces
    assert (piece.rows, piece.columns) == (1, 45)


def test_a_long_prompt_is_matched_in_no_time() -> None:
    prompt = "\n" * 30_000 + "a " * 30_000
    start = time.process_time()
    places = _in_prompt(prompt, prompt + "\n")
    assert time.process_time() - start < 2
    assert places.tolist() == [*range(len(prompt) + 1), len(prompt)]
