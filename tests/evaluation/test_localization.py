"""Scores of a picture, against the metrics one by one."""

from __future__ import annotations

import pytest
import torch

from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.localization import localization_scores
from captum_mllm.evaluation.method import Method
from captum_mllm.metrics import (
    ExplainedCaption,
    interference_leakage,
    pointing_game,
    relevance_mass,
    relevance_rank,
    token_iou,
)


@pytest.mark.parametrize("levels", ["caption", "map", None])
def test_scores_are_sums_over_words(case: Case, levels: str | None) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(len(case.query.answer_ids), 14, 14, generator=generator)
    method = Method("any", lambda case: maps, levels=levels)
    found = localization_scores(case, method, maps)
    for name, metric in (
        ("pointing", pointing_game),
        ("mass", relevance_mass),
        ("rank", relevance_rank),
    ):
        each = [float(metric(maps[place], case.example.region(place))) for place in case.nouns]
        assert found[name] == pytest.approx((sum(each), 3), rel=1e-4)
    leaks = [
        float(
            interference_leakage(
                maps[place], case.example.earlier_objects(place), case.example.region(place)
            )
        )
        for place in case.nouns
    ]
    assert leaks[0] == 0
    assert found["leakage"] == pytest.approx((sum(leaks), 2), rel=1e-4)
    scaled = maps
    if levels == "caption":
        scaled = (maps - maps.min()) / (maps.max() - maps.min())
    elif levels == "map":
        low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
        scaled = (maps - low) / (high - low)
    expected = token_iou(
        [ExplainedCaption(scaled.double().clamp(0, 1), case.words, case.example.labels)]
    )
    assert found["objects"].total == pytest.approx(float(expected.objects.total), abs=1e-3)
    assert found["functions"].total == pytest.approx(float(expected.functions.total), abs=0.05)
    assert found["objects"].words == float(expected.objects.n_words) == 3


def test_a_caption_without_nouns_has_nothing_to_score(case: Case) -> None:
    case.words = tuple(type(word)("other", word.tokens) for word in case.words)
    maps = torch.rand(len(case.query.answer_ids), 14, 14)
    found = localization_scores(case, Method("any", lambda case: maps), maps)
    assert all(score == (0, 0) for score in found.values())
