"""Scenes and their objects: checked, located, and changed one object at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import Scene, SceneObject, counterfactual
from tests.datasets.point_in_shape import contains


def test_objects_contain_the_points_of_their_shape() -> None:
    thing = SceneObject("moon", "red", x=0.4, y=0.6, radius=0.2, rotation=0.7)
    generator = np.random.default_rng(0)
    x, y = generator.uniform(0.1, 0.9, (2, 300))
    found = thing.contains(x, y)
    assert 20 < found.sum() < 280
    for inside, px, py in zip(found, x, y):
        turned = complex(px - 0.4, py - 0.6) / 0.2 * np.exp(-0.7j)
        assert inside == contains("moon", turned.real, turned.imag)


def test_unknown_looks_are_refused() -> None:
    thing = SceneObject("star", "red", 0.5, 0.5, 0.1)
    with pytest.raises(ValueError, match="shape is called 'blob'"):
        replace(thing, shape="blob")
    with pytest.raises(ValueError, match="colour is called 'mauve'"):
        replace(thing, color="mauve")
    with pytest.raises(ValueError, match="radius must be positive"):
        replace(thing, radius=0.0)
    with pytest.raises(ValueError, match="background is called 'plaid'"):
        Scene((thing,), "plaid")


def test_counterfactual_takes_away_or_exchanges_one_object() -> None:
    scene = sample_scene(1, objects=3)
    first, second, third = scene.objects
    other = replace(second, shape="ring", color="pink")
    assert counterfactual(scene, 1) == replace(scene, objects=(first, third))
    assert counterfactual(scene, -1) == replace(scene, objects=(first, second))
    assert counterfactual(scene, 1, other) == replace(scene, objects=(first, other, third))
    with pytest.raises(IndexError, match="3 objects"):
        counterfactual(scene, 3)
