"""Framed images keep their objects, and stand where the margin or the cut leaves them."""

from __future__ import annotations

import numpy as np
import pytest

from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.scenes import Scene, SceneObject
from captum_mllm.demo.training.architecture import IMAGE_MEAN
from captum_mllm.demo.training.caption_stages import frame

SCENE = Scene((SceneObject("circle", "red", x=0.3, y=0.6, radius=0.15),), "light")


def _frames(zoom: float, count: int = 20) -> np.ndarray:
    images = np.stack([render(SCENE, 112).image] * count)
    return frame(images, [SCENE] * count, zoom, np.random.default_rng(0))


def _red(images: np.ndarray) -> np.ndarray:
    values = images.astype(int)
    return (values[..., 0] > 150) & (values[..., 1] < 90) & (values[..., 2] < 90)


@pytest.mark.parametrize("zoom", [0.5, 0.8, 1.5, 2.0])
def test_the_object_is_whole_and_as_large_as_the_zoom_makes_it(zoom: float) -> None:
    before = _red(render(SCENE, 112).image).sum()
    after = _red(_frames(zoom)).sum(axis=(1, 2))
    assert before > 500
    np.testing.assert_allclose(after, before * zoom**2, rtol=0.06)


def test_a_smaller_image_has_a_margin_of_the_mean_colour() -> None:
    frames = _frames(0.5)
    margin = (frames == np.rint(255 * np.array(IMAGE_MEAN))).all(axis=-1)
    assert margin.mean(axis=(1, 2)) == pytest.approx(0.75, abs=0.01)
    corners = {tuple(np.argwhere(~each)[0]) for each in margin}
    assert len(corners) > 10


def test_a_image_of_the_canvas_s_size_stays_as_it_is() -> None:
    assert np.array_equal(_frames(1.0, 1)[0], render(SCENE, 112).image)
