"""ARC, the activation ranking correlation."""

from __future__ import annotations

from typing import Literal

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._options import check_choice, check_flag, check_number, is_integer
from captum_mllm.attr.arguments import check_image_tokens
from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.functional import rank_biased_overlap
from captum_mllm.attr.text_attribution import context_scores, explained_rows
from captum_mllm.models.layout import size_of
from captum_mllm.models.query import Query
from captum_mllm.models.states import States

#: Length of the rankings in the paper.
TOP_K = 50
Suppress = Literal["irrelevant", "relevant"]
Reading = Literal["next", "previous"]


class ARC(ContextSuppression):
    r"""
    Activation ranking correlation (Liang et al., arXiv 2509.22415).

    How much an earlier token j has to do with token t is the rank-biased overlap of two rankings
    of the top k next tokens, :math:`\rho_{tj}` (their Eq. 7): the ranking from which t was drawn,
    and the ranking that the model makes after reading j. On the image, the map of an earlier token
    interferes with that of token t by

    .. math::
        w_{tj} = (1 - \rho_{tj})^q \quad\text{or}\quad w_{tj} = \rho_{tj}^q

    The paper's abstract suppresses what is irrelevant and keeps what coheres (the first); the
    second takes tokens that compete for the same place as the interference. On the text, ARC can
    multiply the text attribution of the method that it wraps by :math:`a + \rho_{tj}`.

    Args:
        attribution_method (Attribution): the base, such as MSEA around AttendedLens or LogitLens.
        top_k (int, optional): length of the rankings, 1 to the vocabulary's size.
            Default: None, 50 as in the paper, or all of a smaller vocabulary
        persistence (float): p of the rank-biased overlap, in (0, 1). Default: 0.9
        suppress (str, optional): which tokens interfere, the "irrelevant" or the "relevant" ones.
            If None, none does, and maps are the positive part of the method's.
            Default: "irrelevant"
        reading (str): the ranking of an earlier token: "next", which the model makes after reading
            it, or "previous", from which it was drawn. Default: "next"
        power (float): exponent q of the weights, above 0. Default: 1.0
        strength (float, optional): how much of the interference's least-squares share is taken
            out, in [0, 1]. If None, the cosine of the map and its interference: nearly all where a
            map is nearly all interference, as with a plain lens that is bright everywhere.
            Default: 0.5
        by_activation (bool): also weigh the interference of a token by how strongly its state says
            token t, :math:`\mathrm{relu}(h_j^\top w_t)`, as TAM does. Default: False
        text_floor (float, optional): what :math:`a` adds to the correlation that weighs text, at
            least 0; 0.2 puts more of the weight on the tokens that matter most, and ranks all of
            them a little worse. Default: None, the text attribution is not changed
        image_agreement (bool): also weigh each image token by the overlap of its own top-k
            predictions with those of the token. It computes, in chunks, the logits of every image
            token. Default: False
        normalize (bool): map each token's image and text scores to [0, 1] together.
            Default: False
        filter_size (int, optional): side of the window of a rank Gaussian filter.
            Default: None, no filter.

    Raises:
        TypeError: if the method is not an attribution on an MLLM, and for an option of another
            type.
        ValueError: for an option outside of its range.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
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
        suppress: Suppress | None = "irrelevant",
        reading: Reading = "next",
        power: float = 1.0,
        strength: float | None = 0.5,
        by_activation: bool = False,
        text_floor: float | None = None,
        image_agreement: bool = False,
        normalize: bool = False,
        filter_size: int | None = None,
    ) -> None:
        super().__init__(attribution_method, normalize, filter_size, strength)
        size = self.forward_func.vocabulary.size
        if top_k is not None and not (is_integer(top_k) and 1 <= top_k <= size):
            raise ValueError(
                f"top_k={top_k!r}, expected a whole number from 1 to the vocabulary's size, {size}"
            )
        check_number("persistence", persistence, "(0, 1)")
        check_choice("suppress", suppress, ("irrelevant", "relevant", None))
        check_choice("reading", reading, ("next", "previous"))
        check_number("power", power, "(0, inf)")
        check_number("text_floor", text_floor, "[0, inf)", optional=True)
        check_flag("by_activation", by_activation)
        check_flag("image_agreement", image_agreement)
        self.top_k = top_k
        self.persistence = persistence
        self.suppress = suppress
        self.reading = reading
        self.power = power
        self.by_activation = by_activation
        self.text_floor = text_floor
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
        weights = correlation**self.power
        if self.by_activation:
            weights = weights * context_scores(self.forward_func, states)
        return weights

    def weigh_text(self, weights: Tensor, states: States, query: Query) -> Tensor:
        if self.text_floor is None:
            return weights
        correlation = explained_rows(self.correlation(states), query)[:, : weights.shape[1]]
        return weights * (self.text_floor + correlation).to(weights)

    def correlation(self, states: States) -> Tensor:
        r"""The rank-biased overlap of the ranking from which each of N tokens was drawn (rows)
        with the ranking of each as an earlier token (columns), (N, N) in [0, 1]."""
        key = ("rank-biased overlap", self._length, self.persistence, self.reading)
        if key not in states.derived:
            drawn = self._rankings(states)
            context = drawn if self.reading == "previous" else self._next_rankings(states, drawn)
            overlap = rank_biased_overlap(drawn, context, self.persistence)
            states.derived[key] = overlap.float()
        return states.derived[key]

    def refine(self, maps: Tensor, states: States, rows: Tensor, image: int = 0) -> Tensor:
        if not self.image_agreement:
            return maps
        check_image_tokens(self.forward_func, "image_agreement")
        key = ("rankings of the image", self._length, image)
        if key not in states.of_prompt:
            ranked = self.forward_func.vocabulary.rankings(states.image[image][0], self._length)
            states.of_prompt[key] = ranked
        tokens, rankings = states.of_prompt[key], self._rankings(states)[rows]
        agreement = rank_biased_overlap(rankings, tokens, self.persistence).to(maps)
        layout, size = states.layouts[image], size_of(maps)
        # Of what other scales alone see, no more is known than how the rest of the image agrees.
        factor = torch.where(
            layout.coverage(size).to(maps.device),
            layout.paint(agreement, size),
            agreement.mean(1)[:, None, None],
        )
        return maps * factor.unsqueeze(1)

    def _rankings(self, states: States) -> Tensor:
        """From which each token was drawn, (N, k); of the logits that tell its probability too."""
        return states.predictions(self.forward_func.vocabulary, self._length, True).top_ids

    def _next_rankings(self, states: States, drawn: Tensor) -> Tensor:
        """What the model expects after each token, (N, k).

        The next token was drawn from it, except after the last token of a run of text. What
        follows the last token of the answer is not known, and no token comes after it."""
        key = ("rankings after runs", self._length)
        ends = torch.tensor(states.run_ends, dtype=torch.long, device=drawn.device)
        if key not in states.of_prompt:
            last = states.text[0, ends]
            states.of_prompt[key] = self.forward_func.vocabulary.rankings(last, self._length)
        following = drawn.roll(-1, 0)
        following[ends] = states.of_prompt[key]
        return following

    @property
    def _length(self) -> int:
        return self.top_k or min(TOP_K, self.forward_func.vocabulary.size)
