"""Scores of a sample, against the metrics and the passes one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from captum_mllm import MLLM
from captum_mllm.datasets import counterfactual, render
from captum_mllm.evaluation.controls import true_masks
from captum_mllm.evaluation.examples import Example, sample_examples
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.scores import Faithfulness, localization_scores
from captum_mllm.metrics import (
    ExplainedCaption,
    interference_leakage,
    perturbation_curve,
    pointing_game,
    relevance_mass,
    relevance_rank,
    token_iou,
)
from captum_mllm.models.pixels import to_tensor


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


def without(example: Example, thing: int) -> torch.Tensor:
    rendered = render(counterfactual(example.scene, thing))
    return to_tensor(Image.fromarray(rendered.image))[None]


def test_causal_correlation_equals_passes_one_by_one(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(case.query.answer_ids), 14, 14, generator=generator)
    expected = 0.0
    with torch.no_grad():
        whole = case.mllm(case.image, case.query)[0].log_softmax(-1)
        twins = [
            case.mllm(without(case.example, thing), case.query)[0].log_softmax(-1)
            for thing in range(3)
        ]
    for place in case.nouns:
        token = case.query.answer_ids[place]
        drops = [float(whole[place, token] - twin[place, token]) for twin in twins]
        masses = [float(relevance_mass(maps[place], mask)) for mask in case.example.masks]
        expected += float(spearmanr(drops, masses).statistic)
    score = Faithfulness(case).causal(maps)["causal"]
    assert score.words == 3
    assert score.total == pytest.approx(expected)


def test_the_true_mask_is_causal_on_a_model_that_looks(mllm: MLLM) -> None:
    total = words = 0.0
    for example in sample_examples(range(3), objects=2):
        case = Case(mllm, example)
        score = Faithfulness(case).causal(true_masks(case))["causal"]
        total, words = total + score.total, words + score.words
    assert total / words > 0.5


def test_one_object_has_no_causal_correlation(mllm: MLLM) -> None:
    case = Case(mllm, sample_examples([0], objects=1)[0])
    score = Faithfulness(case).causal(true_masks(case))["causal"]
    assert score == (0, 0)


@pytest.mark.parametrize("baseline", ["blur", "mean", "counterfactual"])
def test_curves_are_those_of_one_noun(case: Case, baseline: str) -> None:
    maps = true_masks(case)
    found = Faithfulness(case, baseline, steps=2).curves(maps)
    place = int(np.random.default_rng(case.example.number).choice(case.nouns))
    (thing,) = case.example.caption.objects[place]
    start = without(case.example, thing) if baseline == "counterfactual" else baseline
    arguments = {
        "baselines": start,
        "additional_forward_args": (case.query,),
        "target": (place, case.query.answer_ids[place]),
        "steps": 2,
        "spacing": "quadratic",
    }
    each = maps[place][None, None]
    insertion, deletion = (
        float(
            perturbation_curve(case.mllm, case.image, each, kind, **arguments).area_under(
                normalize=True
            )
        )
        for kind in ("insertion", "deletion")
    )
    np.testing.assert_allclose(
        [found[name].total for name in ("insertion", "deletion", "difference")],
        [insertion, deletion, insertion - deletion],
        atol=1e-5,
    )


@pytest.mark.parametrize("every", [2, 3, 6])
def test_curves_follow_early_and_late_nouns(
    mllm: MLLM, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    followed = []
    monkeypatch.setattr(
        Faithfulness, "_area", lambda self, _, place, maps: followed.append((self.case, place)) or 0
    )
    for example in sample_examples(range(0, 8 * every, every), objects=3):
        case = Case(mllm, example)
        Faithfulness(case).curves(torch.zeros(len(case.query.answer_ids), 1, 1))
    assert len({case.nouns.index(place) for case, place in followed}) == 3
