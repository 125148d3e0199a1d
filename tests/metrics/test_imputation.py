"""Removed pixels are noisy means of their neighbours: against a dense system of equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_mllm.metrics import perturbation_curve
from captum_mllm.metrics.imputation import impute_linearly


def solved(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One equation for each removed pixel, as the paper has them, solved in float64."""
    height, width = removed.shape
    places = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    number = {place: row for row, place in enumerate(places)}
    system, right = np.zeros((len(places),) * 2), np.zeros(len(places))
    for (y, x), row in number.items():
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                other = (y + down, x + across)
                inside = 0 <= other[0] < height and 0 <= other[1] < width
                if not inside or (down, across) == (0, 0):
                    continue
                weight = 1 / 6 if 0 in (down, across) else 1 / 12
                system[row, row] += weight
                if other in number:
                    system[row, number[other]] -= weight
                else:
                    right[row] += weight * image[other]
    found = image.copy()
    for place, value in zip(places, np.linalg.solve(system, right)):
        found[place] = value
    return found


@pytest.mark.parametrize("size", [(1, 6), (5, 7), (19, 26)])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_equals_the_system_of_equations(size: tuple[int, int], share: float) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=random, dtype=torch.float64)
    removed = torch.rand(2, 1, *size, generator=random) < share
    # A block in the second one, as maps remove them.
    removed[1, 0, : size[0] // 2 + 1, : size[1] // 2] = True
    removed[:, 0, -1, -1] = False
    found = impute_linearly(images, removed, noise=0, tolerance=1e-9)
    for image, mask, own in zip(images, removed, found):
        for channel, plane in zip(image, own):
            expected = solved(channel.numpy(), mask[0].numpy())
            np.testing.assert_allclose(plane.numpy(), expected, atol=1e-6)
    near = impute_linearly(images.float(), removed, noise=0)
    torch.testing.assert_close(near, found.float(), rtol=0, atol=2e-3)


def test_pixels_that_are_left_stay_and_noise_is_the_same_each_time() -> None:
    images = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(1, 1, 12, 9, dtype=torch.bool)
    assert torch.equal(impute_linearly(images, removed), images)
    removed[..., 3:9, 2:6] = True
    found, plain = impute_linearly(images, removed), impute_linearly(images, removed, noise=0)
    everywhere = removed.expand_as(images)
    assert torch.equal(found[~everywhere], images[~everywhere])
    assert torch.equal(found, impute_linearly(images, removed))
    assert float((found - plain)[everywhere].std()) == pytest.approx(0.01, rel=0.3)
    assert found.min() >= 0 and found.max() <= 1
    nothing = impute_linearly(images, torch.ones_like(removed), noise=0)
    torch.testing.assert_close(nothing, images.mean((2, 3), keepdim=True).expand_as(images))
    assert impute_linearly(images.bfloat16(), removed).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
def test_curves_impute_what_is_missing_at_each_step(kind: str) -> None:
    images = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = torch.arange(36.0).reshape(1, 1, 6, 6)
    seen: list[torch.Tensor] = []

    def brightness(given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return given.mean((1, 2, 3))

    perturbation_curve(brightness, images, maps, kind, "road", steps=4, perturbations_per_eval=2)
    steps = torch.cat(seen)
    for step, given in enumerate(steps):
        # Those with the largest values come or go first, nine at each step.
        first = maps[0] >= 36 - 9 * step
        removed = first if kind == "deletion" else ~first
        expected = impute_linearly(images, removed[None])[0]
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)
