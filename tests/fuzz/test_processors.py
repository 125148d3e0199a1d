"""Whatever an image processor is told, a map lies in its place, or the option is refused."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.layout import Piece
from captum_mllm.models.locate import locate
from tests.fuzz.contract import EXAMPLES, FUZZ, ON_DEMAND, reasoned
from tests.models.tiny_families import FAMILIES, available, shared

# Geometries whose processors are told what to do in different ways.
FEW = ["qwen2_vl", "llava", "internvl", "llava_next", "idefics3"]
EVERY = [family for family in FAMILIES if available(family)]
SWITCHES = ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_center_crop"]
SWITCHES += ["do_pad", "do_pan_and_scan", "do_image_splitting", "crop_to_patches"]
SWITCHES += ["default_to_square", "use_covering_area_grid", "return_row_col_info"]
COUNTS = ["min_patches", "max_patches", "merge_size", "temporal_patch_size", "min_size"]
SIDES = st.sampled_from([14, 28, 42, 55, 56, 84, 112, 140, 168])
AREAS = SIDES.map(lambda side: side**2) | st.sampled_from([1, 500, 10**6])
SQUARES = st.fixed_dictionaries({"height": SIDES, "width": SIDES})
EDGES = st.fixed_dictionaries({}, optional={"shortest_edge": SIDES, "longest_edge": SIDES})
LIMITS = st.fixed_dictionaries({"shortest_edge": AREAS, "longest_edge": AREAS})
PIXELS = st.fixed_dictionaries({}, optional={"min_pixels": AREAS, "max_pixels": AREAS})
SIZES = SIDES | SQUARES | EDGES | LIMITS | PIXELS
LEVELS = st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=3, max_size=3)
OPTIONS = st.one_of(
    st.tuples(st.sampled_from(SWITCHES), st.booleans() | st.none()),
    st.tuples(st.sampled_from(COUNTS), st.integers(0, 14)),
    st.tuples(st.sampled_from(["size", "crop_size", "pad_size", "max_image_size"]), SIZES),
    st.tuples(st.sampled_from(["min_pixels", "max_pixels"]), AREAS),
    st.tuples(st.just("patch_size"), st.sampled_from([7, 14, 16, 28])),
    st.tuples(st.just("resample"), st.integers(0, 5)),
    st.tuples(st.sampled_from(["image_mean", "image_std"]), LEVELS | st.just(0.5)),
    st.tuples(st.just("rescale_factor"), st.sampled_from([1.0, 1 / 255, 1 / 127.5])),
    st.tuples(st.just("image_grid_pinpoints"), st.lists(st.tuples(SIDES, SIDES), max_size=2)),
    st.tuples(st.just("image_seq_length"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["input_data_format", "data_format"]), st.just("channels_last")),
)
PLACES = ["image processor", "processor", "tokenizer", "later"]
LENGTHS = st.integers(2, 220) | st.sampled_from([28, 56, 84, 112, 168])
SCALES = st.sampled_from([1.0, 1.0, 0.5, 1.5, 2.0, 3.0]) | st.floats(0.05, 3.5)


def tell(processor: Any, place: str, name: str, value: Any) -> None:
    if place == "processor":
        processor.images_kwargs = {**getattr(processor, "images_kwargs", {}), name: value}
    elif place == "tokenizer":
        processor.tokenizer.init_kwargs[name] = value
    else:
        setattr(processor.image_processor, name, value)


def copied(processor: Any) -> Any:
    """A processor of the same class with an image processor and arguments of its own."""
    own = copy.copy(processor)
    own.image_processor = copy.deepcopy(processor.image_processor)
    own.tokenizer = copy.copy(processor.tokenizer)
    own.tokenizer.init_kwargs = dict(processor.tokenizer.init_kwargs)
    own.images_kwargs = dict(getattr(processor, "images_kwargs", {}))
    return own


def _cell(piece: Piece) -> tuple[float, float]:
    """Height and width of a token's cell, in pixels of the image."""
    left, top, right, bottom = piece.box
    return (bottom - top) / piece.rows, (right - left) / piece.columns


# A case makes several passes.
@settings(FUZZ, max_examples=EXAMPLES if ON_DEMAND else 25)
@given(
    family=st.sampled_from(EVERY if ON_DEMAND else FEW),
    options=st.lists(st.tuples(st.sampled_from(PLACES), OPTIONS), max_size=3),
    size=st.tuples(LENGTHS, LENGTHS),
    scale=SCALES,
)
def test_a_map_lies_in_its_place_or_the_option_is_refused(
    family: str,
    options: list[tuple[str, tuple[str, Any]]],
    size: tuple[int, int],
    scale: float,
) -> None:
    scaled = [max(round(scale * length), 1) for length in size]
    # Tokens of a larger image cost time and show nothing new.
    assume(min(scaled) >= 2 and scaled[0] * scaled[1] <= 400**2)
    model, processor = shared(family)
    processor = copied(processor)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    with reasoned() as outcome:
        for place, (name, value) in options:
            if place != "later":
                tell(processor, place, name, value)
        mllm = MLLM(model, processor)
        shown, query = mllm.prepare(ImageTextInput(image, "what ?"), target="a cat")
        for place, (name, value) in options:
            if place == "later":
                tell(processor, place, name, value)
        larger = shown
        if scale != 1:
            larger = F.interpolate(shown, size=scaled, mode="bilinear", antialias=True)
        with torch.no_grad():
            native = mllm.layouts(shown, query)[0]
            encoding = mllm.encode((larger,), query)
        own = mllm.encode((larger.clone().requires_grad_(),), query).inputs["pixel_values"]
        layout = encoding.layouts[0]
        located = locate(
            mllm.backbone, lambda images: mllm.encode((images,), query), larger, cells=6, pieces=2
        )
    event("right" if outcome.refused is None else "refused")
    if outcome.refused is not None:
        return
    assert layout.size == larger.shape[-2:]
    if scale >= 2 and min(scaled) > 28:
        # Tiles and grids are counted in whole numbers, so that smaller steps may be lost; a side
        # shorter than a cell is enlarged to one.
        assert layout.n_tokens > native.n_tokens
    spread = torch.as_tensor(mllm.geometry.option("image_std")).max()
    spread = float(spread) if mllm.geometry.option("do_normalize") else 1.0
    spread *= 1 / (255 * mllm.geometry.option("rescale_factor")) if mllm.geometry.option(
        "do_rescale"
    ) else 1 / 255  # fmt: skip
    processors = encoding.inputs["pixel_values"]
    assert (own - processors).detach().abs().mean() * spread < 0.03
    # Cells of a pixel or two have no inside to change, and a random tower mixes four tokens as one.
    if all(min(_cell(piece)) >= 4 for piece in layout.pieces):
        assert located.tried < 5 or located.share > 0.5, located
