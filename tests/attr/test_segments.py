from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import ImageMaskInput
from torch import Tensor

from captum_mllm.attr import grid_segments, superpixels
from captum_mllm.attr.segments import Segments, check_feature_mask, image_segments
from captum_mllm.models.pixels import to_pil, to_tensor

SIZE = (6, 9)


def image(size: tuple[int, int] = SIZE) -> Tensor:
    return (
        torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    )


def overlapping() -> list[Tensor]:
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :4, :4] = True
    masks[1, 2:, 2:6] = True
    masks[2, 3, 3] = True
    return list(masks)


def two_halves(image: Tensor) -> Tensor:
    labels = torch.full(SIZE, 7)
    labels[:, 4:] = -2
    return labels


@pytest.mark.parametrize(
    "given", [overlapping(), two_halves(image()), grid_segments(SIZE, (2, 3))], ids=str
)
def test_segments_are_hidden_and_painted_as_captum_does(given: Any) -> None:
    segments = image_segments(given, image())
    pil = to_pil(image()[0])
    as_masks = {"mask_list": given} if isinstance(given, list) else {"mask": given}
    inp = ImageMaskInput(pil, baseline=(0, 0, 0), **as_masks)
    count = inp.n_itp_features
    assert segments.shape == (count,)
    for number in range(2**count):
        present = torch.tensor([[number >> index & 1 for index in range(count)]])
        expected = to_tensor(inp.to_model_input(present))
        seen = segments.seen(present.bool())
        assert torch.equal(torch.where(seen, image(), 0.0)[0], expected)
    values = torch.randn(4, count)
    expected = torch.stack([inp.format_pixel_attr(row[None])[0] for row in values])
    torch.testing.assert_close(segments.paint(values)[:, 0], expected)


def test_several_coalitions_are_hidden_at_once() -> None:
    segments = image_segments((2, 3), image())
    present = torch.rand(5, 1, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    seen = segments.seen(present)
    assert seen.shape == (5, 1, *SIZE)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            assert torch.equal(seen[:, 0, row, column], present[:, 0, row // 3, column // 3])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (6, 9), (4, 5), (1, 9)])
def test_a_grid_has_cells_of_nearly_the_same_size(shape: tuple[int, int]) -> None:
    labels = grid_segments(SIZE, shape)
    assert labels.unique().tolist() == list(range(shape[0] * shape[1]))
    sides = [
        labels[:, 0].div(shape[1], rounding_mode="floor").bincount(),
        labels[0].bincount(),
    ]
    for side, pixels, cells in zip(sides, SIZE, shape):
        assert side.min() >= pixels // cells
        assert side.max() <= -(-pixels // cells)
    assert image_segments(shape, image()).shape == (1, *shape)


def test_superpixels_follow_colours() -> None:
    pytest.importorskip("skimage")
    flat = torch.zeros(1, 3, 30, 40)
    flat[:, 0, :, 20:] = 1
    labels = superpixels(flat, n_segments=6)
    assert labels.shape == (30, 40)
    assert not set(labels[:, :19].unique().tolist()) & set(labels[:, 21:].unique().tolist())
    segments = image_segments(6, flat)
    assert segments.shape == (len(labels.unique()),)
    assert segments.text == f"{len(labels.unique())} superpixels"
    assert torch.equal(superpixels(flat[0], n_segments=6), labels)


def test_superpixels_without_scikit_image_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install scikit-image; or give .* grid"):
        image_segments(10, image())


def test_at_another_size_segments_lie_where_they_lay() -> None:
    segments = image_segments((2, 3), image())
    assert segments.resized(SIZE) is segments
    twice = segments.resized((12, 18))
    assert torch.equal(twice.regions, grid_segments((12, 18), (2, 3)))
    half = image_segments(overlapping()[:2], image()).resized((3, 5))
    assert half.size == (3, 5)
    assert half.members.any(0).all()
    single = image_segments(overlapping(), image())
    with pytest.raises(ValueError, match=r"2 x 4 pixels no pixel is left for segments \[2\]"):
        single.resized((2, 4))


def test_pixels_outside_of_all_masks_stay_and_are_worth_nothing() -> None:
    segments = image_segments(overlapping()[:1], image())
    seen = segments.seen(torch.zeros(1, 1, dtype=torch.bool))
    assert torch.equal(~seen[0, 0], overlapping()[0])
    maps = segments.paint(torch.ones(1, 1))
    assert torch.equal(maps[0, 0] > 0, overlapping()[0])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((0, 3), ValueError, "at least 1"),
        ((7, 3), ValueError, "at most one for each of the 6 x 9 pixels"),
        (0, ValueError, "got 0 superpixels"),
        (True, TypeError, "segments=True"),
        ("superpixels", TypeError, "expected \\(rows, columns\\)"),
        ((2.0, 3), TypeError, "expected \\(rows, columns\\)"),
        ((), TypeError, "expected"),
        (torch.zeros(3, 4, dtype=torch.long), ValueError, "the image's 6 x 9 pixels"),
        (torch.zeros(SIZE), ValueError, "dtype torch.float32"),
        ([torch.zeros(SIZE)], ValueError, "with 0 pixels for segment 0"),
        ([torch.ones(2, 2)], ValueError, r"shape \(2, 2\)"),
    ],
    ids=str,
)
def test_what_is_no_segments_is_refused(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        image_segments(given, image())


def test_labels_may_be_any_whole_numbers() -> None:
    segments = image_segments(two_halves(image()).to(torch.int16), image())
    assert isinstance(segments, Segments)
    assert segments.text == "2 segments"
    assert torch.equal(segments.regions, (two_halves(image()) == 7).long())


def test_many_masks_are_told_apart() -> None:
    random = torch.Generator().manual_seed(0)
    masks = list(torch.rand(70, 20, 30, generator=random) > 0.7)
    segments = image_segments(masks, torch.zeros(1, 3, 20, 30))
    for index, mask in enumerate(masks):
        assert torch.equal(segments.members[:, index][segments.regions], mask)


def test_labels_of_numpy_are_those_of_torch() -> None:
    image = torch.rand(1, 3, 4, 6)
    labels = torch.arange(24).reshape(4, 6) // 5
    own, given = image_segments(labels.numpy(), image), image_segments(labels, image)
    assert torch.equal(own.regions, given.regions) and torch.equal(own.members, given.members)


def test_segments_are_painted_in_full_precision_under_autocast() -> None:
    segments = image_segments((2, 3), torch.rand(1, 3, 4, 6))
    values = torch.rand(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = segments.paint(values)
    assert torch.equal(found, segments.paint(values))


def test_masks_of_numpy_are_those_of_torch() -> None:
    left = torch.zeros(4, 6, dtype=torch.bool)
    left[:, :2] = True
    image = torch.zeros(1, 3, 4, 6)
    expected = image_segments([left, ~left], image)
    found = image_segments([left.numpy(), ~left.numpy()], image)
    assert torch.equal(found.regions, expected.regions)
    assert torch.equal(found.members, expected.members)
    with pytest.raises(TypeError, match=r"got segments=a list of list, str, expected \(rows"):
        image_segments([[1], "x"], image)


def test_masks_of_8_bits_are_masks() -> None:
    masks = overlapping()
    expected = image_segments(masks, image())
    for given in (
        [mask.to(torch.uint8) * 255 for mask in masks],
        [np.flip(np.flip(mask.numpy(), 0), 0) for mask in masks],
        [mask.numpy().astype(">u2") * 7 for mask in masks],
    ):
        found = image_segments(given, image())
        assert torch.equal(found.regions, expected.regions)
        assert torch.equal(found.members, expected.members)
    for levels in ([0, 3, 255], [0.0, 0.4, 0.9], [0.0, float("nan"), 1.0]):
        soft = torch.zeros(SIZE, dtype=torch.tensor(levels).dtype)
        soft[0, :3] = torch.tensor(levels)
        with pytest.raises(ValueError, match=r"2 levels other than 0 for segment 0.*threshold it"):
            image_segments([soft], image())


def test_a_grey_mask_is_not_silently_256_labels() -> None:
    levels = np.linspace(0, 255, SIZE[0] * SIZE[1]).astype(np.uint8).reshape(SIZE)
    with pytest.warns(UserWarning, match="each of the 54 levels of the 8-bit segments"):
        image_segments(levels, image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_segments(levels.astype(np.uint16), image()).members) == 54
        assert len(image_segments((levels > 127).astype(np.uint8) * 255, image()).members) == 2
    with pytest.warns(UserWarning, match="54 levels"):
        check_feature_mask(torch.from_numpy(levels)[None, None])
    with pytest.raises(ValueError, match="not whole"):
        check_feature_mask(torch.full((1, 1, *SIZE), 0.5))
    with pytest.raises(TypeError, match="feature_mask of type ndarray"):
        check_feature_mask(levels)
    with pytest.raises(TypeError, match="segments of dtype object"):
        image_segments(levels.astype(object), image())
