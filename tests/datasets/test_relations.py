"""Relations and sizes, on arrangements whose answer is plain to see."""

from __future__ import annotations

import math

import pytest

from captum_mllm.datasets.relations import (
    BIG,
    comparison,
    covered_share,
    relation,
    size_word,
)
from captum_mllm.datasets.scenes import Scene, SceneObject


def _circle(x: float, y: float, radius: float) -> SceneObject:
    return SceneObject("circle", "red", x=x, y=y, radius=radius)


@pytest.mark.parametrize(
    ("x", "y", "radius", "words"),
    [
        (0.5, 0.5, 0.1, ("inside", "around")),
        (0.6, 0.45, 0.1, ("inside", "around")),
        (0.75, 0.5, 0.1, ("on top of", "under")),
        (0.5, 0.05, 0.1, ("above", "below")),
        (0.95, 0.6, 0.1, ("beside", "beside")),
    ],
)
def test_relation_of_a_small_circle_to_a_large_one_under_it(
    x: float, y: float, radius: float, words: tuple[str, str]
) -> None:
    scene = Scene((_circle(0.5, 0.5, 0.25), _circle(x, y, radius)))
    assert (relation(scene, 1, 0), relation(scene, 0, 1)) == words


def test_a_large_object_over_a_small_one_is_on_top_of_it() -> None:
    scene = Scene((_circle(0.5, 0.5, 0.1), _circle(0.5, 0.5, 0.25)))
    assert relation(scene, 1, 0) == "on top of"


def test_what_lies_in_the_hole_of_a_ring_does_not_touch_it() -> None:
    ring = SceneObject("ring", "blue", x=0.5, y=0.5, radius=0.3)
    assert covered_share(_circle(0.5, 0.5, 0.1), ring) == 0.0


@pytest.mark.parametrize("apart", [0.0, 0.1, 0.19, 0.25])
def test_covered_share_is_that_of_two_discs(apart: float) -> None:
    radius = 0.95 * 0.2
    half = math.acos(min(1.0, apart / 2 / radius))
    lens = 2 * radius**2 * half - apart / 2 * math.sqrt(4 * radius**2 - apart**2)
    found = covered_share(_circle(0.4, 0.5, 0.2), _circle(0.4 + apart, 0.5, 0.2))
    assert found == pytest.approx(lens / (math.pi * radius**2), abs=0.02)


def test_sizes() -> None:
    small, middle, big = (_circle(0.5, 0.5, radius) for radius in (0.1, BIG, 0.2))
    assert [size_word(thing) for thing in (small, middle, big)] == ["small", "big", "big"]
    assert comparison(big, small) == "bigger than"
    assert comparison(small, big) == "smaller than"
    assert comparison(big, middle) == comparison(middle, big) == "as big as"
