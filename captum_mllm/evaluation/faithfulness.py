"""Whether the model depends on what the maps of a caption's words mark."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_mllm.datasets import counterfactual, render
from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.score import NOTHING, Score, Scores
from captum_mllm.metrics import (
    causal_correlation,
    perturbation_curve,
    relevance_mass,
)
from captum_mllm.metrics.picture_baselines import PictureBaseline
from captum_mllm.models.pixels import to_tensor

Baseline = Literal["blur", "mean", "counterfactual"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    r"""
    The faithfulness metrics of one case, and the passes that all methods share.

    Args:
        case (Case): The model and the captioned picture.
        baseline (str): What stands in the place of the pixels in insertion and deletion:
            ``"blur"``, ``"mean"``, or ``"counterfactual"``, the same scene without the object that
            the word speaks of. Default: "counterfactual"
        steps (int): Steps of the curves, of quadratically growing area. Default: 10
    """

    case: Case
    baseline: Baseline = "counterfactual"
    steps: int = 10

    def causal(self, maps: Tensor) -> Scores:
        r"""
        Correlation, over the objects of the picture, of a map's mass on each and of the drop of
        the noun's log-probability where it is taken out of the scene.

        Args:
            maps (Tensor): A map for each token, (T, h, w), at least 0.

        Returns:
            dict[str, Score]: Over the nouns; none in a picture of fewer than two objects.
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

        One noun of each picture is followed, by its first token if it has several. It is drawn at
        random, so that later nouns, which earlier ones interfere with, are among them; the same
        one for all methods.

        Args:
            maps (Tensor): A map for each token, (T, h, w), at least 0.

        Returns:
            dict[str, Score]: Of one noun, or none where there is none.
        """
        case = self.case
        if not case.nouns:
            return dict.fromkeys(("insertion", "deletion", "difference"), NOTHING)
        place = int(np.random.default_rng(case.example.number).choice(case.nouns))
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
            baselines=self._picture_without(place),
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
        pictures = [case.image[0]]
        for index in range(len(case.example.masks)):
            pictures.append(self._without(index))
        with torch.no_grad():
            logits = case.mllm(torch.stack(pictures), case.query)
        ids = torch.tensor(case.query.answer_ids, device=logits.device)
        likelihood = (
            logits.float()
            .log_softmax(-1)
            .gather(2, ids[None, :, None].expand(len(logits), -1, -1))[..., 0]
        )
        # On the CPU, where the maps are.
        drops = (likelihood[0] - likelihood[1:]).mT.cpu()
        return torch.stack([drops[list(case.words[place].tokens)].sum(0) for place in case.nouns])

    def _picture_without(self, place: int) -> PictureBaseline:
        if self.baseline != "counterfactual":
            return self.baseline
        (thing,) = self.case.example.caption.objects[place]
        return self._without(thing)[None]

    def _without(self, thing: int) -> Tensor:
        """The picture of the scene without an object, (3, H, W)."""
        rendered = render(counterfactual(self.case.example.scene, thing))
        return to_tensor(Image.fromarray(rendered.image)).to(self.case.image)
