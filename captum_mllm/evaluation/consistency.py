"""Whether the scales of a multi-scale explanation speak of the same thing."""

from __future__ import annotations

import torch

from captum_mllm import MSEA
from captum_mllm.evaluation.cases import Base, Case
from captum_mllm.evaluation.method import DEFAULT_SCALES
from captum_mllm.evaluation.methods import ATTENTION, LENS, ROLLOUT
from captum_mllm.evaluation.score import NOTHING, Score, Scores
from captum_mllm.metrics import scale_agreement, target_consistency

#: The scales at which the target is looked at.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

# Those whose maps at the scales of MSEA are compared.
_BASES: dict[str, Base] = {"lens": LENS, "attention": ATTENTION, "rollout": ROLLOUT}


def target_scores(case: Case) -> dict[str, Scores]:
    r"""
    How sure the model is of the caption's words at each scale.

    Args:
        case (Case): The model and the captioned picture.

    Returns:
        dict[str, Scores]: For each scale, over all tokens of the caption: their probability, their
        rank, and how often it is the first; and the same for the tokens of nouns and attributes.
    """
    ids = torch.tensor(case.query.answer_ids)
    logits = [case.logits(scale).cpu() for scale in SCALES]
    found = target_consistency(logits, ids)
    content = [
        token
        for word, kind in zip(case.words, case.example.caption.kinds)
        if kind in ("noun", "attribute")
        for token in word.tokens
    ]
    scores: dict[str, Scores] = {}
    for scale, probability, rank in zip(SCALES, found.probability, found.rank):
        first = (rank == 1).float()
        scores[f"{scale:g}"] = {
            "probability": Score.of(probability),
            "rank": Score.of(rank),
            "first": Score.of(first),
            "content_probability": Score.of(probability[content]),
            "content_first": Score.of(first[content]),
        }
    return scores


def agreement_scores(case: Case) -> dict[str, Scores]:
    r"""
    How alike the maps of nouns are at the scales of MSEA, for each of some bases.

    Args:
        case (Case): The model and the captioned picture.

    Returns:
        dict[str, Scores]: For each base, over the nouns, the mean of Spearman's correlation of
        the maps at each two scales.
    """
    nouns = case.nouns
    if not nouns:
        return {name: {"agreement": NOTHING} for name in _BASES}
    scores: dict[str, Scores] = {}
    for name, base in _BASES.items():
        by_scale = MSEA(case.base(base)).attribute(
            case.image,
            scales=DEFAULT_SCALES,
            combine=False,
            additional_forward_args=(case.query,),
        )
        maps = [case.of_words(each[:, 0], nouns).float().cpu() for each in by_scale]
        agreement = scale_agreement(maps)
        above = torch.ones(agreement.shape[-2:], dtype=torch.bool).triu(1)
        scores[name] = {"agreement": Score.of(agreement[:, above].mean(-1))}
    return scores
