"""Every score of a sample: localization, faithfulness and consistency."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from captum_mllm import MSEA
from captum_mllm.evaluation.method import DEFAULT_SCALES, Base, Case, Method
from captum_mllm.evaluation.published import ATTENTION, LENS, ROLLOUT
from captum_mllm.evaluation.records import NOTHING, Score, Scores
from captum_mllm.metrics import (
    ExplainedCaption,
    causal_correlation,
    grey_levels,
    perturbation_curve,
    pointing_game,
    relevance_mass,
    relevance_rank,
    scale_agreement,
    target_consistency,
    token_iou,
)
from captum_mllm.metrics.aligned_maps import resize
from captum_mllm.metrics.image_baselines import PixelBaseline
from captum_mllm.metrics.region_iou import region_iou
from captum_mllm.metrics.token_iou import harmonic_mean
from captum_mllm.models.layout import size_of
from captum_mllm.models.pixels import to_tensor


def localization_scores(case: Case, method: Method, maps: Tensor) -> Scores:
    r"""
    Obj-, Func- and F1-IoU, pointing, relevance mass and rank, and interference leakage.

    Nouns are scored against the object that they speak of, function words by Func-IoU.

    Args:
        case (Case): The model and the captioned image.
        method (Method): The method, which says how its maps become grey levels.
        maps (Tensor): A map for each token, (T, h, w), at least 0.

    Returns:
        dict[str, Score]: A score for each metric; over 0 words where no word can be scored.
    """
    scores = _iou(case, method, maps)
    masks = case.regions[:, 0]
    # Once for all metrics that would do it.
    of_nouns = resize(case.of_words(maps, case.nouns), size_of(masks))
    mass, leakage = relevance_mass(of_nouns[:, None], case.regions).unbind(1)
    return {
        **scores,
        "pointing": Score.of(pointing_game(of_nouns, masks)),
        "mass": Score.of(mass),
        "rank": Score.of(relevance_rank(of_nouns, masks)),
        "leakage": Score.of(leakage[case.has_earlier]),
    }


def _iou(case: Case, method: Method, maps: Tensor) -> Scores:
    levels = grey_levels(maps, method.levels)
    labels = case.example.labels
    if labels is None:
        found = region_iou(levels, case.words, case.example.masks)
    else:
        found = token_iou([ExplainedCaption(levels, case.words, labels)])
    objects = Score(float(found.objects.total), float(found.objects.n_words))
    functions = Score(float(found.functions.total), float(found.functions.n_words))
    both = float(objects.words > 0 and functions.words > 0)
    means = [torch.tensor(score.total / max(score.words, 1.0)) for score in (objects, functions)]
    return {
        "objects": objects,
        "functions": functions,
        "f1_per_image": Score(float(harmonic_mean(*means)) * both, both),
    }


Baseline = Literal["blur", "mean", "black", "road", "counterfactual"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    r"""
    The faithfulness metrics of one case, and the passes that all methods share.

    Args:
        case (Case): The model and the captioned image.
        baseline (str): What replaces the pixels in insertion and deletion:
            ``"blur"``, ``"mean"``, ``"black"``, ``"road"``, or ``"counterfactual"``, the same
            scene without the object that the word speaks of. Default: "counterfactual"
        steps (int): Steps of the curves, of quadratically growing area. Default: 10
    """

    case: Case
    baseline: Baseline = "counterfactual"
    steps: int = 10

    def causal(self, maps: Tensor) -> Scores:
        r"""
        Correlation, over the objects of the image, of a map's mass on each and of the drop of
        the noun's log-probability where it is taken out of the scene.

        Args:
            maps (Tensor): A map for each token, (T, h, w), at least 0.

        Returns:
            dict[str, Score]: Over the nouns; none in an image of fewer than two objects.
        """
        nouns = self.case.nouns
        masks = self.case.example.masks
        if len(masks) < 2 or not nouns:
            return {"causal": NOTHING}
        masses = relevance_mass(self.case.of_words(maps, nouns)[:, None], masks[None])
        return {"causal": Score.of(causal_correlation(self._drops, masses))}

    def curves(self, maps: Tensor) -> Scores:
        r"""
        Normalised areas under the insertion and deletion curves, and their difference.

        One noun of each image is followed, or one of the other content words where no noun has an
        object, by its first token if it has several. It is drawn at
        random, so that later nouns, which earlier ones interfere with, are among them; the same
        one for all methods.

        Args:
            maps (Tensor): A map for each token, (T, h, w), at least 0.

        Returns:
            dict[str, Score]: Of one noun; empty without a noun.
        """
        case = self.case
        places = case.nouns or case.content
        if not places:
            return dict.fromkeys(("insertion", "deletion", "difference"), NOTHING)
        place = int(np.random.default_rng(case.example.number).choice(places))
        maps = case.of_words(maps, [place])[:, None]
        insertion = self._area("insertion", place, maps)
        deletion = self._area("deletion", place, maps)
        return {
            "insertion": Score(insertion, 1.0),
            "deletion": Score(deletion, 1.0),
            "difference": Score(insertion - deletion, 1.0),
        }

    def _area(self, kind: Literal["insertion", "deletion"], place: int, maps: Tensor) -> float:
        token = self.case.words[place].tokens[0]
        curve = perturbation_curve(
            self.case.mllm,
            self.case.image,
            maps,
            kind,
            baselines=self._image_without(place),
            additional_forward_args=(self.case.query,),
            target=(token, self.case.query.answer_ids[token]),
            steps=self.steps,
            perturbations_per_eval=self.steps + 1,
            spacing="quadratic",
        )
        return float(curve.area_under(normalize=True))

    @cached_property
    def _drops(self) -> Tensor:
        """Drop of each noun's log-probability without each object, (nouns, K)."""
        case = self.case
        images = [case.image[0]]
        for index in range(len(case.example.masks)):
            images.append(self._without(index))
        with torch.no_grad():
            logits = case.mllm(torch.stack(images), case.query)
        ids = torch.tensor(case.query.answer_ids, device=logits.device)
        likelihood = (
            logits.float()
            .log_softmax(-1)
            .gather(2, ids[None, :, None].expand(len(logits), -1, -1))[..., 0]
        )
        # On the CPU, where the maps are.
        drops = (likelihood[0] - likelihood[1:]).mT.cpu()
        return torch.stack([drops[list(case.words[place].tokens)].sum(0) for place in case.nouns])

    def _image_without(self, place: int) -> PixelBaseline:
        if self.baseline == "black":
            return 0.0
        if self.baseline != "counterfactual":
            return self.baseline
        (thing,) = self.case.example.things[place]
        return self._without(thing)[None]

    def _without(self, thing: int) -> Tensor:
        """The image of the scene without an object, (3, H, W)."""
        return to_tensor(self.case.example.without(thing)).to(self.case.image)


#: The scales at which the target is looked at.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

# Those whose maps at the scales of MSEA are compared.
_BASES: dict[str, Base] = {"lens": LENS, "attention": ATTENTION, "rollout": ROLLOUT}


def target_scores(case: Case) -> dict[str, Scores]:
    r"""
    How sure the model is of the caption's words at each scale.

    Args:
        case (Case): The model and the captioned image.

    Returns:
        dict[str, Scores]: For each scale, over all tokens of the caption: their probability, their
        rank, and how often it is the first; and the same for the tokens of nouns and attributes.
    """
    ids = torch.tensor(case.query.answer_ids)
    logits = [case.logits(scale).cpu() for scale in SCALES]
    found = target_consistency(logits, ids)
    content = [token for place in case.example.content_places for token in case.words[place].tokens]
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
        case (Case): The model and the captioned image.

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
