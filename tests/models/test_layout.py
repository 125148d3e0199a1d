from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captum_mllm.models import Layout, Piece, layout


def slow_paint(layout: Layout, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Cell by cell in float64: the weighted mean of bilinear samples of the pieces."""
    painted = torch.zeros(size, dtype=torch.float64)
    height, width = layout.size
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) * height / size[0], (column + 0.5) * width / size[1]
            total, start = 0.0, 0
            for piece in layout.pieces:
                left, top, right, bottom = piece.box
                grid = values[start : start + piece.n_tokens].reshape(piece.rows, piece.columns)
                start += piece.n_tokens
                if not (left <= x <= right and top <= y <= bottom):
                    continue
                down = (y - top) / (bottom - top) * piece.rows - 0.5
                across = (x - left) / (right - left) * piece.columns - 0.5
                down = min(max(down, 0), piece.rows - 1)
                across = min(max(across, 0), piece.columns - 1)
                sample = 0.0
                for i, share_i in ((int(down), 1 - down % 1), (int(down) + 1, down % 1)):
                    for j, share_j in (
                        (int(across), 1 - across % 1),
                        (int(across) + 1, across % 1),
                    ):
                        if share_i * share_j > 0:
                            sample += share_i * share_j * grid[i, j]
                density = piece.n_tokens / ((right - left) * (bottom - top))
                painted[row, column] += density * sample
                total += density
            painted[row, column] /= total or 1.0
    return painted


LAYOUTS = {
    "whole": Layout((30, 40), (Piece(3, 4, (0, 0, 40, 30)),)),
    "one cell": Layout((30, 40), (Piece(1, 1, (0, 0, 40, 30)),)),
    "centre crop": Layout((30, 45), (Piece(4, 4, (7.5, 0, 37.5, 30)),)),
    "padded": Layout((20, 40), (Piece(4, 4, (0, -10, 40, 30)),)),
    "tiles and thumbnail": Layout(
        (20, 40),
        (Piece(2, 2, (0, 0, 20, 20)), Piece(2, 2, (20, 0, 40, 20)), Piece(2, 2, (0, 0, 40, 20))),
    ),
    "overlapping windows": Layout(
        (20, 50), (Piece(4, 4, (0, 0, 30, 20)), Piece(4, 4, (20, 0, 50, 20)))
    ),
}


@pytest.mark.parametrize("size", [None, (7, 11), (40, 30), (1, 1)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_painting_equals_the_slow_twin(name: str, size: tuple[int, int] | None) -> None:
    layout = LAYOUTS[name]
    values = torch.randn(layout.n_tokens, dtype=torch.float64)
    expected = slow_paint(layout, values, size or layout.grid)
    torch.testing.assert_close(layout.paint(values, size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [None, (7, 11), (40, 30), (1, 1)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_coverage_is_where_a_painted_constant_shows(
    name: str, size: tuple[int, int] | None
) -> None:
    layout = LAYOUTS[name]
    covered = layout.coverage(size)
    assert covered.dtype == torch.bool
    assert covered.shape == (size or layout.grid)
    assert torch.equal(covered, slow_paint(layout, torch.ones(layout.n_tokens), covered.shape) > 0)


def test_what_a_centre_crop_cuts_away_is_not_covered() -> None:
    covered = LAYOUTS["centre crop"].coverage()
    assert torch.equal(covered, torch.tensor([[0, 1, 1, 1, 1, 0]]).bool().expand(4, -1))


def test_a_grid_that_covers_the_image_is_reproduced_bitwise() -> None:
    layout = Layout((97, 131), (Piece(7, 9, (0, 0, 131, 97)),))
    values = torch.randn(5, 63)
    assert layout.grid == (7, 9)
    assert torch.equal(layout.paint(values), values.reshape(5, 7, 9))


def test_a_grid_that_falls_between_cells_is_painted_twice_as_fine() -> None:
    assert LAYOUTS["centre crop"].grid == (4, 6)
    assert Layout((30, 44), (Piece(4, 4, (7, 0, 37, 30)),)).grid == (4, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_but_accumulated_in_float32(dtype: torch.dtype) -> None:
    layout = LAYOUTS["tiles and thumbnail"]
    values = torch.randn(12)
    painted = layout.paint(values.to(dtype), (9, 9))
    assert painted.dtype == dtype
    torch.testing.assert_close(painted.float(), layout.paint(values, (9, 9)), rtol=2e-2, atol=2e-2)


def test_painting_is_differentiable() -> None:
    values = torch.randn(12, requires_grad=True)
    LAYOUTS["whole"].paint(values, (6, 8)).sum().backward()
    assert values.grad is not None
    assert values.grad.sum() == pytest.approx(48, rel=1e-5)


def test_the_wrong_number_of_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 11 values, expected 12"):
        LAYOUTS["whole"].paint(torch.zeros(11))


def test_weights_made_in_inference_mode_serve_gradients_later() -> None:
    layout = Layout((31, 41), (Piece(3, 4, (0, 0, 41, 31)),))
    with torch.inference_mode():
        layout.paint(torch.rand(12, dtype=torch.float64), (6, 8))
    values = torch.rand(12, dtype=torch.float64, requires_grad=True)
    layout.paint(values, (6, 8)).sum().backward()
    assert values.grad is not None


def test_what_is_kept_of_interpolations_is_bounded_in_bytes() -> None:
    layout._kept.clear()
    for side in range(300, 600):
        whole = Layout((side, side), (Piece(20, 20, (0, 0, side, side)),))
        assert torch.equal(whole.paint(torch.ones(400), (side, side)), torch.ones(side, side))
    assert 0 < sum(kept.nbytes for kept in layout._kept.values()) <= layout.KEPT_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_images_of_many_sizes_leave_no_memory_behind(count: int) -> None:
    """In a process of its own, so that what other tests leave behind does not count."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.models.many_sizes", str(count)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert float(found.stdout) < 50
