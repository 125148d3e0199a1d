"""Every attribution method on every kind of model, alone and under MSEA.

Here: which cells work, and that MSEA averages what the method gives at each scale. That the method
alone is right is in ``test_attributor_values``, and beside the methods of this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from torch import Tensor

from tests.attr.attributor_columns import COLUMNS, MULTIMODAL, Column, column
from tests.attr.attributor_outcomes import kind, refusal
from tests.attr.attributor_rows import ROWS, SCALES, TOKEN_ROWS, Row, attributions
from tests.attr.attributor_table import PAGE, page

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor .* did not already require gradients",
    "ignore:Setting (forward, )?backward hooks",
    "ignore:images have values outside",
)


def cells(wrapped: bool) -> Iterator[Any]:
    for row in ROWS.values():
        for name in COLUMNS:
            # Classifiers have no vision tower.
            if row.layer != "vision" or name in MULTIMODAL:
                yield pytest.param(row, name, wrapped, id=f"{row.name}-{name}")


@pytest.mark.parametrize(("row", "name", "wrapped"), cells(wrapped=False))
def test_alone_a_cell_works_or_says_why_not(row: Row, name: str, wrapped: bool) -> None:
    where = column(name)
    reason = refusal(row, where, wrapped)
    if reason is not None:
        with pytest.raises(reason.error, match=reason.message):
            attributions(row.name, name, wrapped)
        return
    found, inputs = attributions(row.name, name, wrapped), row.inputs(where)
    assert torch.isfinite(found).all()
    assert found.double().std() > 0
    if row.layer is None:
        assert kind(found, inputs) == ("grid" if row in TOKEN_ROWS else "pixels")


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def mean_over_scales(row: Row, where: Column) -> Tensor:
    """What MSEA has to give: each scale by hand, with the arguments made for its size."""
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    inputs = row.inputs(where)
    height, width = inputs.shape[-2:]
    found = []
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        images = inputs if scale == 1 else resize(inputs, size)
        maps = row.method(where).attribute(images, **row.kwargs(where, size)).detach()
        found.append(resize(maps, (height, width)) if maps.ndim == 4 else maps)
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(("row", "name", "wrapped"), cells(wrapped=True))
def test_under_msea_a_cell_is_the_mean_over_the_scales_or_says_why_not(
    row: Row, name: str, wrapped: bool
) -> None:
    where = column(name)
    reason = refusal(row, where, wrapped)
    if reason is not None:
        with pytest.raises(reason.error, match=reason.message):
            attributions(row.name, name, wrapped)
        return
    expected = mean_over_scales(row, where)
    found = attributions(row.name, name, wrapped)
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()), check_dtype=False
    )
    if found.ndim == 4:
        assert found.shape[2:] == row.inputs(where).shape[2:]
        # What the larger scale adds is not nothing.
        alone = attributions(row.name, name, False).to(found)
        assert not torch.allclose(found, resize(alone, found.shape[2:]), rtol=1e-3)


@pytest.mark.parametrize("layer", ["first", "vision"])
@pytest.mark.parametrize("name", MULTIMODAL)
def test_layer_grad_cam_of_tokens_cannot_be_taken_for_a_map(name: str, layer: str) -> None:
    where = column(name)
    row = "LayerGradCam" if layer == "first" else "LayerGradCam, vision tower"
    found = attributions(row, name, False)
    assert found.ndim < 4
    # ValueError or, of two dimensions, NotImplementedError.
    with pytest.raises((ValueError, NotImplementedError), match=r"[Ii]nput"):
        LayerAttribution.interpolate(found, where.images.shape[-2:], "bilinear")


def test_one_image_has_nothing_to_exchange() -> None:
    row = ROWS["FeaturePermutation"]
    where = column("qwen2_vl")
    method = row.method(where)
    assert not method.attribute(where.images, **row.kwargs(where)).any()


def test_the_table_in_the_docs_is_that_of_this_run() -> None:
    expected = page().splitlines()
    found = PAGE.read_text(encoding="utf-8").splitlines()
    assert found == expected, "write it anew with: python -m tests.attr.attributor_table"
