import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from captum_mllm.metrics import grey_levels, otsu_threshold
from captum_mllm.metrics import localization as module


def draw_image(generator: np.random.Generator) -> np.ndarray:
    """Flat, skewed, two-humped, sparse or nearly constant; of any size."""
    shape = tuple(generator.integers(1, 40, 2))
    kind = generator.integers(5)
    if kind == 0:
        values = generator.random(shape)
    elif kind == 1:
        values = generator.random(shape) ** 6
    elif kind == 2:
        low = generator.normal(0.3, 0.1, shape)
        values = np.where(generator.random(shape) < 0.3, low + 0.4, low)
    elif kind == 3:
        values = generator.random(shape) * (generator.random(shape) < 0.1)
    else:
        values = generator.integers(0, 3, shape) / 20 + 0.5
    return (values.clip(0, 1) * 255).astype(np.uint8)


def test_equals_scikit_image_on_levels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(1000):
        image = draw_image(generator)
        assert int(otsu_threshold(torch.from_numpy(image))) == threshold_otsu(image)


def test_equals_scikit_image_on_floating_point_values() -> None:
    generator = np.random.default_rng(1)
    for _ in range(1000):
        image = generator.normal(size=tuple(generator.integers(1, 30, 2))) ** 3
        found = otsu_threshold(torch.from_numpy(image))
        assert float(found) == pytest.approx(threshold_otsu(image), rel=1e-9, abs=1e-12)


def test_maps_of_a_batch_are_independent() -> None:
    images = torch.randint(0, 256, (3, 4, 9, 7), generator=torch.Generator().manual_seed(0)).byte()
    thresholds = otsu_threshold(images)
    assert thresholds.shape == (3, 4)
    for row in range(3):
        for column in range(4):
            assert thresholds[row, column] == otsu_threshold(images[row, column])


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (7, 5, 5), generator=torch.Generator().manual_seed(0)).byte()
    whole = otsu_threshold(images)
    monkeypatch.setattr(module, "_CELLS", 60)
    assert torch.equal(otsu_threshold(images), whole)


@pytest.mark.parametrize(
    ("levels", "lowest"), [([0, 100, 200], 0), ([33, 33, 37, 54, 70, 86, 103, 107, 107], 54)]
)
def test_the_lowest_of_equally_good_levels_is_taken(levels: list[int], lowest: int) -> None:
    # Symmetric around the middle level, so that parting before it and after it is the same.
    assert int(otsu_threshold(torch.tensor([levels], dtype=torch.uint8))) == lowest


def test_large_images_do_not_overflow() -> None:
    image = torch.zeros(2048, 2048, dtype=torch.uint8)
    image[0, :3] = torch.tensor([250, 253, 255])
    assert int(otsu_threshold(image)) == threshold_otsu(image.numpy()) == 0


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_constant_map_is_its_own_threshold(level: int) -> None:
    image = torch.full((4, 6), level, dtype=torch.uint8)
    assert int(otsu_threshold(image)) == level == threshold_otsu(image.numpy())
    values = torch.full((4, 6), level / 7)
    assert otsu_threshold(values) == values[0, 0]
    assert not (values > otsu_threshold(values)).any()


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1e30])
def test_floating_point_thresholds_scale_with_the_map(factor: float) -> None:
    image = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = otsu_threshold(image) * factor
    torch.testing.assert_close(otsu_threshold(image * factor), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    image = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(otsu_threshold(image), otsu_threshold(image.float()))


def test_no_maps() -> None:
    assert otsu_threshold(torch.zeros(0, 4, 4)).shape == (0,)
    assert otsu_threshold(torch.zeros(0, 4, 4, dtype=torch.uint8)).shape == (0,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity"):
        otsu_threshold(torch.tensor([[1.0, value]]))


def test_other_types_and_shapes_are_refused() -> None:
    with pytest.raises(TypeError, match="floating-point or uint8 Tensor"):
        otsu_threshold(torch.ones(4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(..., h, w\) with at least one cell, got \(4, 0\)"):
        otsu_threshold(torch.ones(4, 0))


def test_grey_levels_are_cut_not_rounded() -> None:
    levels = grey_levels(torch.tensor([[0.0, 0.5, 0.999, 1.0]]))
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [[0, 127, 254, 255]]


def test_grey_levels_by_map_and_by_caption() -> None:
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]], [[3.0, 3.0]]])
    assert grey_levels(maps, "map").tolist() == [[[0, 255]], [[0, 255]], [[0, 0]]]
    assert grey_levels(maps, "caption").tolist() == [[[0, 63]], [[127, 255]], [[191, 191]]]


def test_grey_levels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -0.1 to 2; see normalize"):
        grey_levels(torch.tensor([[-0.1, 2.0]]))
