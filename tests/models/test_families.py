"""Every family of the table, proven on a tiny random model of the real class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from captum_mllm.models.families import FAMILIES as ROWS
from captum_mllm.models.families import family_of
from captum_mllm.models.layout import Layout
from tests.models.tiny_families import FAMILIES, shared
from tests.models.tiny_models import FAMILIES as FIRST

# Odd, wide and tall.
SIZES = [(97, 131), (84, 196), (168, 70)]
SCALES = (0.5, 1.0, 1.5, 2.0)
PATCHES = 6
NEW = [family for family in FAMILIES if family not in FIRST]
sizes = pytest.mark.parametrize(
    "size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])], ids=str
)


def opened(family: str, size: tuple[int, int], target: Any = "a cat") -> tuple[MLLM, Tensor, Query]:
    mllm = MLLM(*shared(family))
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    picture = picture.mul(255).round() / 255
    image, query = mllm.prepare(ImageTextInput(picture, "what is it ?"), target=target)
    return mllm, image, query


def scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [round(scale * length) for length in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def features(mllm: MLLM, pictures: Tensor, query: Query) -> tuple[Tensor, Layout]:
    """What the decoder receives in the place of each image token, (B, N, d), and where they lie."""
    seen: list[Tensor] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    encoding = mllm.encode((pictures,), query)
    first = mllm.model.get_decoder().layers[0]
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        mllm.model(**encoding.inputs, use_cache=False)
    handle.remove()
    found = seen[0][:, encoding.image_positions[0]]
    return found.unflatten(0, (-1, encoding.windows)).flatten(1, 2), encoding.layouts[0]


def cells(layout: Layout, count: int) -> list[list[tuple[int, tuple[int, int, int, int]]]]:
    """For each piece some of its tokens that lie in the image, with the pixels of their cells."""
    height, width = layout.size
    found, start = [], 0
    for piece in layout.pieces:
        left, top, right, bottom = piece.box
        down, across = (bottom - top) / piece.rows, (right - left) / piece.columns
        inside = []
        for token in range(piece.n_tokens):
            y, x = top + token // piece.columns * down, left + token % piece.columns * across
            if -1 <= y and -1 <= x and y + down <= height + 1 and x + across <= width + 1:
                edges = [max(round(edge), 0) for edge in (x, y, x + across, y + down)]
                inside.append((start + token, tuple(edges)))
        found.append(inside[:: max(len(inside) // count, 1)][:count])
        start += piece.n_tokens
    return found


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    built = {(row.model_type, row.vision_type) for row in map(row_of, FAMILIES) if row}
    optional = {
        ("llava", "pixtral"), ("mistral3", None), ("llama4", None), ("cohere2_vision", None)
    } | {("smolvlm", None)}
    assert set(ROWS) - built <= optional


def row_of(family: str) -> Any:
    try:
        return family_of(shared(family)[0].config)
    except pytest.skip.Exception:
        return None


@sizes
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_cell_moves_its_own_token_most(family: str, size: tuple[int, int]) -> None:
    mllm, image, query = opened(family, size)
    tried = 0
    for scale in SCALES:
        picture = scaled(image, scale)
        before, layout = features(mllm, picture, query)
        start = 0
        for piece, chosen in zip(layout.pieces, cells(layout, PATCHES)):
            changed = picture.repeat(len(chosen), 1, 1, 1)
            for row, (_, (left, top, right, bottom)) in enumerate(chosen):
                part = changed[row, :, top:bottom, left:right]
                part.copy_(1 - part.round())
            if chosen:
                after, _ = features(mllm, changed, query)
                moved = (after - before).norm(dim=-1)[:, start : start + piece.n_tokens]
                own = [token - start for token, _ in chosen]
                assert moved.argmax(1).tolist() == own, (scale, piece)
            start += piece.n_tokens
            tried += len(chosen)
    assert tried >= 12
