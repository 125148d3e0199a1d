"""What maps of words have in common, on maps that were made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from captum_mllm.demo.training.smolvlm.interference import MEASURES, word_measures

WORDS = ("a", "red", "circle", "and", "a", "blue", "star", "and", "a", "green", "ring", ".")
OBJECTS = ((0,), (0,), (0,), (), (1,), (1,), (1,), (), (2,), (2,), (2,), ())
MASKS = np.eye(4)[:3]


def _measured(lens: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(MEASURES, row)) for row in word_measures(lens, WORDS, OBJECTS, MASKS)]


def test_maps_on_their_own_objects_share_nothing() -> None:
    lens = np.zeros((len(WORDS), 4))
    for place, objects in enumerate(OBJECTS):
        for index in objects:
            lens[place, index] = 2.0
    star, ring = _measured(lens)
    assert star["positive"] == ring["positive"] == 0.25
    assert star["cosine"] == ring["cosine"] == pytest.approx(0)
    for measure in ("earlier / own", "later / own", "background / own"):
        assert star[measure] == 0
    assert np.isnan(ring["later / own"])


def test_a_common_part_is_shared() -> None:
    common = np.array([4.0, 3.0, 2.0, 1.0])
    lens = np.tile(common, (len(WORDS), 1))
    star, ring = _measured(lens)
    assert star["cosine"] == pytest.approx(1)
    assert star["shared"] == pytest.approx(1)
    assert star["earlier / own"] == pytest.approx(4 / 3)
    assert star["later / own"] == pytest.approx(2 / 3)
    assert ring["earlier / own"] == pytest.approx(3.5 / 2)
    assert ring["background / own"] == pytest.approx(1 / 2)


def test_a_map_that_misses_its_object_counts_as_the_worst() -> None:
    lens = np.zeros((len(WORDS), 4))
    lens[:, 0] = 1.0
    lens[:, 1] = -1.0
    star, _ = _measured(lens)
    assert star["earlier / own"] == np.inf


def test_the_first_object_has_nothing_before_it() -> None:
    lens = np.random.default_rng(0).normal(size=(3, 4))
    assert word_measures(lens, WORDS[:3], OBJECTS[:3], MASKS) == []


def test_an_object_without_a_token_of_its_own_has_no_ratio() -> None:
    lens = np.random.default_rng(0).normal(size=(len(WORDS), 4))
    masks = MASKS.copy()
    masks[1] = 0
    star = dict(zip(MEASURES, word_measures(lens, WORDS, OBJECTS, masks)[0]))
    assert all(np.isnan(star[name]) for name in MEASURES if "own" in name)
