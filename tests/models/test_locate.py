"""Where a token lies is proven: changing one patch of the image moves the map most there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_mllm import MLLM, MSEA, ImageTextInput, LogitLens
from captum_mllm.models.layout import size_of
from tests.models.tiny_models import FAMILIES, shared

SIZES = [(84, 84), (112, 196), (224, 84), (97, 131)]
# Between two arrangements of as many tiles, at one of the scales at least.
TIED = [(160, 200), (100, 125), (80, 300)]
SCALES = (0.4, 1.0, 1.5, 2.0)
PATCHES = 6
# Many words, so that no change is missed because it happens to be orthogonal to one of them.
ANSWER = list(range(3, 67))


def patches_of(image: Tensor, cell: int) -> list[tuple[int, int]]:
    """Some patches, spread over the image, by their upper left corner."""
    height, width = size_of(image)
    corners = [
        (y, x) for y in range(0, height - cell + 1, cell) for x in range(0, width - cell + 1, cell)
    ]
    return corners[:: max(len(corners) // PATCHES, 1)]


def seen(mllm: MLLM, image: Tensor, query: object, corner: tuple[int, int], cell: int) -> bool:
    """Whether the middle of the patch is in what the model is shown (LLaVA crops the middle)."""
    left, top, right, bottom = mllm.layouts(image, query)[0].pieces[0].box
    y, x = corner[0] + cell / 2, corner[1] + cell / 2
    whole = len(mllm.layouts(image, query)[0].pieces) > 1
    return whole or (left <= x <= right and top <= y <= bottom)


@pytest.mark.parametrize(
    ("family", "size"),
    [(family, size) for family in FAMILIES for size in SIZES]
    + [("internvl", size) for size in TIED],
    ids=str,
)
def test_a_changed_patch_moves_the_map_most_at_its_place(
    family: str, size: tuple[int, int]
) -> None:
    mllm = MLLM(*shared(family))
    generator = torch.Generator().manual_seed(0)
    image = 0.5 + 0.1 * torch.rand(3, *size, generator=generator)
    image, query = mllm.prepare(ImageTextInput(image, "what is it ?"), target=ANSWER)
    cell = 28
    # The map is twice as fine as the tokens where these do not fall on its cells.
    slack = 1 if family == "llava" else 0
    method = MSEA(LogitLens(mllm))

    def explain(picture: Tensor) -> list[Tensor]:
        return method.attribute(
            picture, scales=SCALES, additional_forward_args=(query,), combine=False
        )

    before = explain(image)
    tried = 0
    for y, x in patches_of(image, cell):
        changed = image.clone()
        changed[..., y : y + cell, x : x + cell] = torch.rand(3, cell, cell, generator=generator)
        for scale, old, new in zip(SCALES, before, explain(changed)):
            if scale <= 1 and not seen(mllm, image, query, (y, x), cell):
                continue
            tried += 1
            moved = (new - old).abs().sum((0, 1))
            row, column = divmod(int(moved.argmax()), moved.shape[1])
            down, across = size[0] / moved.shape[0], size[1] / moved.shape[1]
            # The token that moved most has to overlap the patch, or to touch it.
            assert (row - slack) * down < y + cell, (family, size, scale, (y, x))
            assert (row + slack + 1) * down >= y, (family, size, scale, (y, x))
            assert (column - slack) * across < x + cell, (family, size, scale, (y, x))
            assert (column + slack + 1) * across >= x, (family, size, scale, (y, x))
    assert tried >= 8
