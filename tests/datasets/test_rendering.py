"""Images and masks: reproducible, exact, and unchanged where nothing was changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import BACKGROUND, COLORS, Scene, SceneObject, counterfactual
from captum_mllm.datasets.shapes import EXTENT, SHAPES
from tests.datasets.point_in_shape import contains


def _mask(thing: SceneObject, size: int) -> npt.NDArray[np.bool_]:
    """Pixel by pixel, whether its centre lies in the object."""
    mask = np.zeros((size, size), dtype=bool)
    for row in range(size):
        for column in range(size):
            right = ((column + 0.5) / size - thing.x) / thing.radius
            down = ((row + 0.5) / size - thing.y) / thing.radius
            turn = complex(right, down) * complex(
                math.cos(-thing.rotation), math.sin(-thing.rotation)
            )
            mask[row, column] = contains(thing.shape, turn.real, turn.imag)
    return mask


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_holds_the_pixels_whose_centre_is_in_the_shape(shape: str) -> None:
    thing = SceneObject(shape, "red", x=0.47, y=0.52, radius=0.37, rotation=0.3)
    np.testing.assert_array_equal(render(Scene((thing,)), 41).masks[0], _mask(thing, 41))


def test_masks_show_only_what_is_not_covered() -> None:
    scene = Scene(
        (
            SceneObject("square", "red", x=0.4, y=0.5, radius=0.3),
            SceneObject("ring", "blue", x=0.6, y=0.5, radius=0.3),
            SceneObject("star", "green", x=0.5, y=0.7, radius=0.25),
        )
    )
    size = 48
    whole = [_mask(thing, size) for thing in scene.objects]
    rendered = render(scene, size)
    for index, mask in enumerate(rendered.masks):
        covered = np.any(whole[index + 1 :], axis=0) if index + 1 < len(whole) else False
        np.testing.assert_array_equal(mask, whole[index] & ~covered)
        assert 0 < mask.sum() < whole[index].sum() or index == 2
    np.testing.assert_array_equal(rendered.background, ~np.any(whole, axis=0))


def test_objects_reaching_over_the_border_are_cut_off() -> None:
    thing = SceneObject("circle", "red", x=0.0, y=1.0, radius=0.3)
    np.testing.assert_array_equal(render(Scene((thing,)), 32).masks[0], _mask(thing, 32))
    outside = SceneObject("circle", "red", x=3.0, y=-2.0, radius=0.3)
    assert not render(Scene((outside,)), 32).masks.any()


@pytest.mark.parametrize("color", COLORS)
def test_object_has_its_color(color: str) -> None:
    thing = SceneObject("square", color, x=0.5, y=0.5, radius=0.4)
    rendered = render(Scene((thing,), "dark"), 96)
    inside = rendered.image[rendered.masks[0]]
    np.testing.assert_allclose(inside.mean(axis=0), COLORS[color], atol=6)


def test_stripes_darken_part_of_the_object() -> None:
    plain = SceneObject("square", "yellow", x=0.5, y=0.5, radius=0.3)
    mask = render(Scene((plain,))).masks[0]
    brightness = [
        render(Scene((thing,))).image[mask].mean()
        for thing in (plain, replace(plain, striped=True))
    ]
    assert 0.5 < brightness[1] / brightness[0] < 0.85


def test_rendering_is_a_pure_function_of_scene_and_size() -> None:
    scene = sample_scene(3, objects=2)
    first, second = render(scene, 60), render(scene, 60)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert first.image.dtype == np.uint8 and first.image.shape == (60, 60, 3)
    assert (render(replace(scene, seed=scene.seed + 1), 60).image != first.image).any()


def test_small_rendering_looks_like_a_large_one_scaled_down() -> None:
    scene = sample_scene(4, objects=3)
    large = render(scene, 224).image.astype(float)
    averaged = large.reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
    small = render(scene, 112).image.astype(float)
    assert np.abs(small - averaged).mean() < 6
    background = render(scene, 112).background
    for image in (small, averaged):
        residual = np.diff(image[..., 0], axis=0)[background[1:] & background[:-1]]
        assert 5 < residual.std() < 9


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_counterfactual_changes_no_pixel_away_from_the_object(index: int, exchanged: bool) -> None:
    scene = sample_scene(11, objects=3)
    thing = scene.objects[index]
    replacement = replace(thing, shape="heart", color="pink") if exchanged else None
    before, after = render(scene), render(counterfactual(scene, index, replacement))
    changed = (before.image != after.image).any(axis=-1)
    centers = (np.arange(224) + 0.5) / 224
    distance = np.hypot(centers[None, :] - thing.x, centers[:, None] - thing.y)
    assert not changed[distance > EXTENT * thing.radius + 1 / 224].any()
    if not exchanged:
        assert changed[before.masks[index]].mean() > 0.95


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        render(sample_scene(0), 0)


def test_scene_without_objects_is_all_background() -> None:
    rendered = render(Scene(()), 16)
    assert rendered.masks.shape == (0, 16, 16)
    assert rendered.background.all()


def test_region_joins_objects_and_background() -> None:
    rendered = render(sample_scene(3, objects=3, contact=1.0), 48)
    np.testing.assert_array_equal(rendered.region((1,)), rendered.masks[1])
    np.testing.assert_array_equal(rendered.region((0, 2)), rendered.masks[0] | rendered.masks[2])
    np.testing.assert_array_equal(rendered.region((BACKGROUND,)), rendered.background)
    assert not rendered.region(()).any()
    assert rendered.region((BACKGROUND, 0, 1, 2)).all()
