"""How well the maps of a caption's words show what they speak of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.method import Method
from captum_mllm.evaluation.score import Score, Scores
from captum_mllm.metrics import (
    ExplainedCaption,
    grey_levels,
    interference_leakage,
    pointing_game,
    relevance_mass,
    relevance_rank,
    token_iou,
)
from captum_mllm.metrics.aligned_maps import resize
from captum_mllm.models.layout import size_of


def localization_scores(case: Case, method: Method, maps: Tensor) -> Scores:
    r"""
    Obj-, Func- and F1-IoU, pointing, relevance mass and rank, and interference leakage.

    Nouns are scored against the object that they speak of, function words by Func-IoU.

    Args:
        case (Case): The model and the captioned picture.
        method (Method): The method, which says how its maps become grey levels.
        maps (Tensor): A map for each token, (T, h, w), at least 0.

    Returns:
        dict[str, Score]: A score for each metric; over 0 words where no word can be scored.
    """
    scores = _iou(case, method, maps)
    nouns = case.nouns
    masks = _stack([case.example.region(place) for place in nouns], case)
    # Once for all metrics that would do it.
    of_nouns = resize(case.of_words(maps, nouns), size_of(masks))
    for name, metric in (
        ("pointing", pointing_game),
        ("mass", relevance_mass),
        ("rank", relevance_rank),
    ):
        scores[name] = Score.of(metric(of_nouns, masks))
    earlier = _stack([case.example.earlier_objects(place) for place in nouns], case)
    others = earlier & ~masks
    # Where no other object was named before, nothing can leak.
    later = others.any(-1).any(-1)
    leakage = interference_leakage(of_nouns[later], earlier[later], masks[later])
    scores["leakage"] = Score.of(leakage)
    return scores


def _iou(case: Case, method: Method, maps: Tensor) -> Scores:
    levels = grey_levels(maps, method.levels)
    found = token_iou([ExplainedCaption(levels, case.words, case.example.labels)])
    objects = Score(float(found.objects.total), float(found.objects.n_words))
    functions = Score(float(found.functions.total), float(found.functions.n_words))
    both = float(objects.words > 0 and functions.words > 0)
    return {
        "objects": objects,
        "functions": functions,
        "f1_per_picture": Score(float(found.f1_per_picture) * both, both),
    }


def _stack(masks: Sequence[Tensor], case: Case) -> Tensor:
    return torch.stack(list(masks)) if masks else case.example.masks[:0]
