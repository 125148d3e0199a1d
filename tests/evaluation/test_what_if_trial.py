"""Right words whose regions are hidden, and how many of them change."""

from __future__ import annotations

import pytest

from captum_mllm import MLLM, AttendedLens
from captum_mllm.datasets import COLORS, SHAPES
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.what_if_trial import Removal, changed_rates, removal_changes


def test_right_words_change_without_their_region_alone() -> None:
    scenes = sample_examples(range(2), objects=2)
    found = removal_changes(AttendedLens(MLLM.from_pretrained("demo/qwen2-vl")), scenes)
    named = [text for each in scenes for text in each.texts if text in SHAPES or text in COLORS]
    assert 0 < len(found) <= len(named)
    assert {each.kind for each in found} == {"shape", "color"}
    assert sum(each.changed for each in found) > sum(each.changed_elsewhere for each in found)
    assert all(0 < each.area < 0.5 for each in found)


def test_rates_are_shares_of_words_with_intervals_over_scenes() -> None:
    rows = [(0, True, False), (0, True, False), (1, False, True), (2, True, False)]
    removals = [Removal(scene, "shape", own, other, 0.1) for scene, own, other in rows]
    own, other = changed_rates(removals)
    assert float(own.estimate) == pytest.approx(0.75)
    assert float(other.estimate) == pytest.approx(0.25)
    # Scenes are drawn, not words.
    assert float(own.low) == 0 and float(own.high) == 1
