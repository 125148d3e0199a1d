"""Tiles and windows are those that the processor cuts, and no more than are needed."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.squares import FixedSquare
from captum_mllm.models.tiles import Tiles
from tests.models.tiny_models import build, shared

# Sizes that lie between two grids of tiles of 56, or on the edge of the rule for ties.
TIED = [(160, 200), (80, 300), (300, 80), (112, 112), (56, 56), (100, 250), (100, 100), (2, 3)]


def tiles() -> Tiles:
    model, processor = shared("internvl")
    return Tiles(model.config, processor)


def squares() -> FixedSquare:
    model, processor = shared("llava")
    return FixedSquare(model.config, processor)


def test_tiles_are_arranged_as_transformers_arranges_them() -> None:
    geometry = tiles()
    rng = random.Random(0)
    sizes = TIED + [(rng.randint(2, 700), rng.randint(2, 700)) for _ in range(300)]
    # Whole multiples of small numbers tie often.
    sizes += [(20 * rng.randint(1, 20), 20 * rng.randint(1, 20)) for _ in range(300)]
    ties = 0
    for size in sizes:
        for count in (1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 24, 36, 48):
            columns, rows = get_optimal_tiled_canvas(size, (56, 56), count, count)
            assert geometry._grid(size, count) == (rows, columns), (size, count)
            ratios = [
                abs(size[1] / size[0] - across / (count // across))
                for across in range(1, count + 1)
                if count % across == 0
            ]
            ties += ratios.count(min(ratios)) > 1
    assert ties > 30


@pytest.mark.parametrize("size", [(160, 200), (80, 300), (112, 112), (224, 84)], ids=str)
def test_tiles_among_all_counts_are_those_of_the_processor(size: tuple[int, int]) -> None:
    mllm = MLLM(*shared("internvl"))
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    pieces = mllm.layouts(image, query)[0].pieces
    columns, rows = get_optimal_tiled_canvas(size, (56, 56), 1, 12)
    assert len(pieces) == (rows * columns + 1 if rows * columns > 1 else 1)
    assert len({piece.box[1] for piece in pieces[:-1]}) in (rows, 0)
    own = mllm.encode((image.requires_grad_(),), query).inputs["pixel_values"]
    with torch.no_grad():
        processors = mllm.encode((image,), query).inputs["pixel_values"]
    assert ((own - processors).abs().amax((1, 2, 3)) < 0.1).all()


@pytest.mark.parametrize(
    ("native", "size", "count"),
    [
        ((84, 84), (84, 84), 1),
        ((84, 84), (86, 86), 1),
        ((84, 84), (88, 88), 1),
        ((84, 84), (93, 93), 4),
        ((84, 84), (126, 126), 4),
        ((84, 84), (168, 168), 4),
        ((84, 84), (172, 172), 4),
        ((84, 84), (252, 252), 9),
        ((84, 336), (42, 168), 1),
        ((84, 336), (86, 343), 4),
        ((84, 336), (168, 672), 16),
        ((336, 84), (343, 86), 4),
        ((100, 250), (200, 500), 10),
    ],
)
def test_windows_are_as_few_as_cover_the_image(
    native: tuple[int, int], size: tuple[int, int], count: int
) -> None:
    windows = squares().windows(size, native)
    assert len(windows) == count
    seen = torch.zeros(size, dtype=torch.bool)
    for left, top, right, bottom in windows:
        assert left >= 0 and top >= 0 and right <= size[1] and bottom <= size[0]
        seen[int(top) : int(bottom), int(left) : int(right)] = True
    assert seen.all()
    assert len({(right - left, bottom - top) for left, top, right, bottom in windows}) == 1


@pytest.mark.parametrize("scale", [1.02, 1.5, 2.0])
@pytest.mark.parametrize("size", [(84, 84), (84, 252), (100, 70)], ids=str)
def test_the_tokens_of_all_windows_see_nearly_all_of_the_image(
    size: tuple[int, int], scale: float
) -> None:
    mllm = MLLM(*shared("llava"))
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    side = min(size)
    covered = mllm.layouts(image, query)[0].coverage((240, 240)).float().mean()
    assert covered == pytest.approx(side / max(size), abs=0.02)
    larger = torch.nn.functional.interpolate(
        image, size=[round(scale * length) for length in size], mode="bilinear"
    )
    assert mllm.layouts(larger, query)[0].coverage((240, 240)).float().mean() > 0.97


def test_a_processor_that_pads_shows_all_of_the_image_at_every_scale() -> None:
    import transformers

    model, processor = build("llava")
    processor.image_processor = transformers.LlavaImageProcessorPil(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}, do_pad=True
    )
    mllm = MLLM(model, processor)
    picture = torch.rand(3, 60, 150, generator=torch.Generator().manual_seed(0))
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    for scale in (0.5, 1.0, 1.02, 2.0):
        size = [round(60 * scale), round(150 * scale)]
        scaled = torch.nn.functional.interpolate(image, size=size, mode="bilinear")
        assert mllm.layouts(scaled, query)[0].coverage().all(), scale
