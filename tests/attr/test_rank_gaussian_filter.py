import importlib
import math

import pytest
import torch
from torch import Tensor

from captum_mllm.attr import rank_gaussian_filter


def mirrored(index: int, size: int, width: int) -> int:
    if size <= width:
        return min(max(index, 0), size - 1)
    if index < 0:
        return -index
    return 2 * (size - 1) - index if index >= size else index


def filter_cell_by_cell(plane: Tensor, kernel_size: int) -> Tensor:
    """One cell at a time, in the terms of the definition, in float64."""
    height, breadth = plane.shape
    half = kernel_size // 2
    filtered = torch.zeros(height, breadth, dtype=torch.float64)
    for row in range(height):
        for column in range(breadth):
            window = sorted(
                plane[mirrored(row + i, height, half), mirrored(column + j, breadth, half)].item()
                for i in range(-half, half + 1)
                for j in range(-half, half + 1)
            )
            mean = sum(window) / len(window)
            if mean <= 0:
                continue
            spread = math.sqrt(sum((x - mean) ** 2 for x in window) / len(window)) / mean
            ranks = range(-(len(window) // 2), len(window) // 2 + 1)
            if spread < 1e-12:
                weights = [float(rank == 0) for rank in ranks]
            else:
                weights = [math.exp(-(rank**2) / (2 * spread**2)) for rank in ranks]
            total = sum(weight * x for weight, x in zip(weights, window, strict=True))
            filtered[row, column] = total / sum(weights)
    return filtered


def draw_maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Heavy-tailed, like activations: windows of small and of large spread."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(*shape, generator=generator, dtype=torch.float64).pow(4).to(dtype)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (3, 2), (7, 5), (12, 16)])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_equals_the_definition(size: tuple[int, int], kernel_size: int) -> None:
    plane = draw_maps(*size)
    torch.testing.assert_close(
        rank_gaussian_filter(plane, kernel_size),
        filter_cell_by_cell(plane, kernel_size),
        rtol=1e-10,
        atol=1e-12,
    )


def test_equals_the_definition_on_maps_with_negative_values() -> None:
    plane = draw_maps(9, 9) - 0.2
    expected = filter_cell_by_cell(plane, 3)
    assert (expected == 0).any()
    assert (expected != 0).any()
    torch.testing.assert_close(rank_gaussian_filter(plane), expected, rtol=1e-10, atol=1e-12)


def test_leading_dimensions_are_independent_maps() -> None:
    maps = draw_maps(2, 3, 6, 7)
    filtered = rank_gaussian_filter(maps)
    assert filtered.shape == maps.shape
    for i in range(2):
        for j in range(3):
            assert torch.equal(filtered[i, j], rank_gaussian_filter(maps[i, j]))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = draw_maps(7, 5, 5)
    whole = rank_gaussian_filter(maps)
    module = importlib.import_module("captum_mllm.attr.functional")
    monkeypatch.setattr(module, "_WINDOW_ELEMENTS", 500)
    assert torch.equal(rank_gaussian_filter(maps), whole)


def test_non_contiguous_maps() -> None:
    maps = draw_maps(6, 7, 4)
    assert torch.equal(
        rank_gaussian_filter(maps.permute(2, 1, 0)),
        rank_gaussian_filter(maps.permute(2, 1, 0).contiguous()),
    )


def test_a_lone_outlier_is_dropped() -> None:
    plane = torch.full((5, 5), 0.5)
    plane[2, 2] = 0.7
    torch.testing.assert_close(rank_gaussian_filter(plane), torch.full((5, 5), 0.5))


def test_scales_with_the_map() -> None:
    plane = draw_maps(8, 8)
    for factor in (1e-30, 3.0, 1e30):
        torch.testing.assert_close(
            rank_gaussian_filter(plane * factor), rank_gaussian_filter(plane) * factor
        )


def test_stays_within_the_window() -> None:
    plane = draw_maps(10, 10)
    filtered = rank_gaussian_filter(plane)
    assert filtered.min() >= plane.min()
    assert filtered.max() <= plane.max()


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 1e-30, 1e30])
@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_a_constant_map_stays_as_it_is(
    value: float, kernel_size: int, size: tuple[int, int]
) -> None:
    plane = torch.full(size, value)
    torch.testing.assert_close(rank_gaussian_filter(plane, kernel_size), plane, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_windows_without_evidence_give_zero(value: float) -> None:
    plane = torch.full((4, 4), value)
    assert torch.equal(rank_gaussian_filter(plane), torch.zeros(4, 4))


def test_values_that_cancel_give_zero() -> None:
    plane = torch.zeros(6, 6, dtype=torch.float64)
    plane[2, 2], plane[2, 3] = 1.0, -1.0
    assert rank_gaussian_filter(plane)[1, 2] == 0


@pytest.mark.parametrize("seed", range(5))
def test_is_finite_where_most_cells_are_zero(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plane = torch.rand(16, 16, generator=generator)
    plane = plane * (torch.rand(16, 16, generator=generator) < 0.1) * 10.0 ** (-8 * seed)
    assert rank_gaussian_filter(plane).isfinite().all()


def test_a_nan_stays_visible() -> None:
    plane = torch.ones(5, 5)
    plane[0, 0] = float("nan")
    filtered = rank_gaussian_filter(plane)
    assert filtered[:2, :2].isnan().all()
    assert filtered[2:].isfinite().all()
    assert filtered[:, 2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_filtered_in_single(dtype: torch.dtype) -> None:
    maps = draw_maps(2, 8, 8, dtype=dtype)
    filtered = rank_gaussian_filter(maps)
    assert filtered.dtype == dtype
    assert torch.equal(filtered, rank_gaussian_filter(maps.float()).to(dtype))


def test_kernel_size_one_is_the_identity() -> None:
    plane = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    filtered = rank_gaussian_filter(plane, kernel_size=1)
    assert torch.equal(filtered, plane)
    assert filtered.data_ptr() != plane.data_ptr()


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3)])
def test_no_cells_give_an_empty_result(shape: tuple[int, ...]) -> None:
    assert rank_gaussian_filter(torch.zeros(shape)).shape == shape


def test_gradients_flow_through_the_filter() -> None:
    plane = draw_maps(5, 5).requires_grad_()
    assert torch.autograd.gradcheck(rank_gaussian_filter, (plane,))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradients_of_a_constant_map_are_finite(value: float) -> None:
    plane = torch.full((4, 4), value, requires_grad=True)
    rank_gaussian_filter(plane).sum().backward()
    assert plane.grad is not None
    assert plane.grad.isfinite().all()


@pytest.mark.parametrize("kernel_size", [0, 2, 4, -3])
def test_even_and_empty_windows_are_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 1"):
        rank_gaussian_filter(torch.ones(4, 4), kernel_size)


@pytest.mark.parametrize("kernel_size", [3.0, "3", True])
def test_a_kernel_size_that_is_no_int_is_refused(kernel_size: object) -> None:
    with pytest.raises(TypeError, match="kernel_size must be an int"):
        rank_gaussian_filter(torch.ones(4, 4), kernel_size)  # type: ignore[arg-type]


def test_maps_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"floating-point Tensor, got torch\.uint8"):
        rank_gaussian_filter(torch.ones(4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="floating-point Tensor, got list"):
        rank_gaussian_filter([[1.0]])  # type: ignore[arg-type]


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(..., h, w\), got \(4,\)"):
        rank_gaussian_filter(torch.ones(4))
