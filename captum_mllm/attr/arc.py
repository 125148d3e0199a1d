"""ARC, the activation ranking correlation."""

from __future__ import annotations

from typing import Literal

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.context_suppression import ContextSuppression, context_scores
from captum_mllm.attr.functional import rank_biased_overlap
from captum_mllm.models.layout import size_of
from captum_mllm.models.states import States
from captum_mllm.models.targets import is_integer

#: Length of the rankings in the paper.
TOP_K = 50


class ARC(ContextSuppression):
    r"""
    Activation ranking correlation (Liang et al., arXiv 2509.22415).

    How much an earlier word j has to do with word t is the rank-biased overlap of the top-k
    next-token predictions from which each was drawn, :math:`\rho_{tj}` (their Eq. 7). With TAM's
    :math:`r_{tj} = \mathrm{relu}(h_j^\top w_t)`, its interference weighs

    .. math::
        w_{tj} = r_{tj} (1 - \rho_{tj}) \quad\text{or}\quad w_{tj} = r_{tj}\, \rho_{tj}

    The paper's abstract suppresses what is irrelevant and keeps what coheres (the first); the
    second takes words that compete for the same place as the interference. Its text attribution is
    :math:`\rho_{tj} r_{tj}`.

    Args:
        attribution_method (Attribution): the base, LogitLens or MSEA around it in the paper.
        top_k (int, optional): length of the rankings, 1 to the vocabulary's size.
            Default: None, 50 as in the paper, or all of a smaller vocabulary
        persistence (float): p of the rank-biased overlap, in (0, 1). Default: 0.9
        suppress (str, optional): which words count as interference, "irrelevant" or "relevant"
            ones. If None, none does: the text attribution stays, and maps are the positive part of
            the method's. Default: "irrelevant"
        image_agreement (bool): also weigh each image token by the overlap of its own top-k
            predictions with those of the word. It computes, in chunks, the logits of every image
            token. Default: False
        normalize (bool, optional): map image and text scores to [0, 1] together.
            Default: None, if words are suppressed
        filter_size (int, optional): side of the window of a rank Gaussian filter.
            Default: None, no filter.

    Raises:
        TypeError: if the method is not an attribution on an MLLM.
        ValueError: for a ``top_k`` that is not a whole number from 1 to the vocabulary's size, a
            ``persistence`` outside of (0, 1), or an unknown ``suppress``.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens
        >>> from captum_mllm.demo import demo_picture
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_picture()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> arc = ARC(MSEA(LogitLens(mllm)), top_k=10)
        >>> arc.attribute(image, additional_forward_args=(query,), scales=(1.0, 1.5)).shape
        torch.Size([3, 1, 21, 21])
    """

    def __init__(
        self,
        attribution_method: Attribution,
        top_k: int | None = None,
        persistence: float = 0.9,
        suppress: Literal["irrelevant", "relevant"] | None = "irrelevant",
        image_agreement: bool = False,
        normalize: bool | None = None,
        filter_size: int | None = None,
    ) -> None:
        super().__init__(attribution_method, normalize, filter_size)
        size = self.forward_func.vocabulary.size
        if top_k is not None and not (is_integer(top_k) and 1 <= top_k <= size):
            raise ValueError(
                f"top_k={top_k!r}, expected a whole number from 1 to the vocabulary's size, {size}"
            )
        if not 0 < persistence < 1:
            raise ValueError(f"persistence={persistence}, expected a number in (0, 1)")
        if suppress not in ("irrelevant", "relevant", None):
            raise ValueError(f"suppress={suppress!r}, expected 'irrelevant', 'relevant' or None")
        self.top_k = top_k
        self.persistence = persistence
        self.suppress = suppress
        self.image_agreement = image_agreement

    @property
    def suppresses(self) -> bool:
        return self.suppress is not None

    def weights(self, states: States) -> Tensor | None:
        if self.suppress is None:
            return None
        correlation = self.correlation(states)
        if self.suppress == "irrelevant":
            correlation = 1 - correlation
        return context_scores(self.forward_func, states) * correlation

    def relevance(self, states: States) -> Tensor:
        return context_scores(self.forward_func, states) * self.correlation(states)

    def correlation(self, states: States) -> Tensor:
        r"""The rank-biased overlap of each token's ranking with each token's, (N, N) in [0, 1]."""
        key = ("rank-biased overlap", self._length, self.persistence)
        if key not in states.derived:
            rankings = self._rankings(states)
            overlap = rank_biased_overlap(rankings, rankings, self.persistence)
            states.derived[key] = overlap.float()
        return states.derived[key]

    def refine(self, maps: Tensor, states: States, rows: Tensor) -> Tensor:
        if not self.image_agreement:
            return maps
        key = ("rankings of the image", self._length)
        if key not in states.of_prompt:
            ranked = self.forward_func.vocabulary.rankings(states.image[0][0], self._length)
            states.of_prompt[key] = ranked
        tokens, rankings = states.of_prompt[key], self._rankings(states)[rows]
        agreement = rank_biased_overlap(rankings, tokens, self.persistence).to(maps)
        layout, size = states.layouts[0], size_of(maps)
        # Of what other scales alone see, no more is known than how the rest of the picture agrees.
        factor = torch.where(
            layout.coverage(size).to(maps.device),
            layout.paint(agreement, size),
            agreement.mean(1)[:, None, None],
        )
        return maps * factor.unsqueeze(1)

    def _rankings(self, states: States) -> Tensor:
        """Of each token; from the logits that also tell the tokens' probabilities."""
        return states.predictions(self.forward_func.vocabulary, self._length, True).top_ids

    @property
    def _length(self) -> int:
        return self.top_k or min(TOP_K, self.forward_func.vocabulary.size)
