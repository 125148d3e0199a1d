"""Sampling of scenes: reproducible, within bounds, as frequent as stated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.relations import BIG, BIGGER, LEVEL, relation
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.sampling import TYPICAL_COLOR, TYPICAL_PARTNER, sample_scene
from captum_mllm.datasets.scenes import COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import SHAPES


def _left_to_right(scene: Scene) -> list[SceneObject]:
    return [scene.objects[index] for index in scene.reading_order()]


def test_equal_seeds_give_equal_scenes_and_others_do_not() -> None:
    scenes = [sample_scene(seed) for seed in range(20)]
    assert scenes == [sample_scene(np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(scenes)) == 20


@pytest.mark.parametrize("objects", [1, 2, 3, 4, 5])
def test_objects_are_apart_within_the_image_and_differ_in_looks(objects: int) -> None:
    for seed in range(40):
        scene = sample_scene(seed, objects=objects)
        assert len(scene.objects) == objects
        for thing in scene.objects:
            assert thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        for one, other in itertools.combinations(scene.objects, 2):
            apart = math.hypot(one.x - other.x, one.y - other.y)
            assert apart > one.radius + other.radius
            assert (one.shape, one.color) != (other.shape, other.color)


def test_occlusion_lets_objects_overlap() -> None:
    def overlaps(scene: Scene) -> bool:
        return any(
            math.hypot(one.x - other.x, one.y - other.y) < one.radius + other.radius
            for one, other in itertools.combinations(scene.objects, 2)
        )

    assert sum(overlaps(sample_scene(seed, 3, occlusion=0.5)) for seed in range(100)) > 20


@pytest.mark.parametrize("prior", [0.0, 0.4, 0.8])
def test_prior_adds_its_strength_to_the_chance_of_typical_looks(prior: float) -> None:
    generator = np.random.default_rng(5)
    typical_colors, typical_partners = [], []
    for _ in range(3000):
        left, right = _left_to_right(sample_scene(generator, objects=2, prior=prior))
        typical_colors.append(left.color == TYPICAL_COLOR[left.shape])
        typical_partners.append(right.shape == TYPICAL_PARTNER[left.shape])
    expected = prior + (1 - prior) / 8
    # Five standard errors of 3000 draws; partners are drawn again after the rare equal looks.
    assert abs(np.mean(typical_colors) - expected) < 0.046
    assert abs(np.mean(typical_partners) - expected) < 0.056


def test_without_prior_all_shapes_and_colors_are_equally_frequent() -> None:
    generator = np.random.default_rng(6)
    things = [sample_scene(generator, objects=1).objects[0] for _ in range(4000)]
    for name in SHAPES:
        assert abs(np.mean([thing.shape == name for thing in things]) - 1 / 8) < 0.027
    for name in COLORS:
        assert abs(np.mean([thing.color == name for thing in things]) - 1 / 8) < 0.027


def test_similar_objects_share_a_shape_or_a_color() -> None:
    for seed in range(50):
        one, other = sample_scene(seed, objects=2, similarity=1.0).objects
        assert (one.shape == other.shape) != (one.color == other.color)


@pytest.mark.parametrize(
    "options",
    [
        {"objects": 0},
        {"objects": 6},
        {"prior": -0.1},
        {"prior": float("nan")},
        {"occlusion": 0.6},
        {"contact": 2},
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        sample_scene(0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("contact", [0.0, 1.0])
def test_no_word_is_a_matter_of_luck(contact: float) -> None:
    for seed in range(60):
        scene = sample_scene(seed, contact=contact)
        things = _left_to_right(scene)
        assert all(abs(thing.radius - BIG) >= 0.01 for thing in things)
        assert all(right.x - left.x >= 0.06 for left, right in itertools.pairwise(things))
        if len(things) > 1:
            radii = sorted((things[0].radius, things[-1].radius))
            assert abs(radii[1] / radii[0] - BIGGER) >= 0.06
            if relation(scene, *scene.reading_order()[:2]) in ("above", "below", "beside"):
                assert abs(abs(things[0].y - things[1].y) - LEVEL) >= 0.035


def test_scenes_with_contact_have_a_pair_that_touches() -> None:
    kinds = []
    for seed in range(60):
        scene = sample_scene(seed, objects=2 + seed % 2, contact=1.0)
        kinds += [
            kind
            for first, second in itertools.permutations(range(len(scene.objects)), 2)
            if (kind := relation(scene, first, second)) in ("inside", "on top of")
        ]
    assert len(kinds) == 60
    assert 15 < kinds.count("inside") < 45


def test_the_inner_object_of_a_pair_is_seen_whole_and_the_outer_one_around_it() -> None:
    found = 0
    for seed in range(20):
        scene = sample_scene(seed, objects=2, contact=1.0)
        if relation(scene, 1, 0) == "inside":
            outer, inner = render(scene, 64).masks
            shifted = [np.roll(inner, step, axis) for step in (-1, 1) for axis in (0, 1)]
            neighbours = np.any(shifted, axis=0)
            # The rims may touch.
            assert outer[neighbours & ~inner].mean() > 0.85
            assert outer.sum() > 2 * inner.sum() > 0
            found += 1
    assert found > 3


def test_contact_is_as_frequent_as_asked_for() -> None:
    touching = 0
    for seed in range(300):
        spoken = caption(sample_scene(seed, objects=2, contact=0.3))
        touching += bool({"inside", "around", "top", "under"} & set(spoken.words))
    assert abs(touching / 300 - 0.3) < 0.13
