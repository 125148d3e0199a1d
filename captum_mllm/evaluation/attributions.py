"""Attributions that only the evaluation uses.

``SharedMaps`` computes maps once for all methods around a base, ``MapFunction`` combines maps,
``LensProbability`` reads the logit lens otherwise, ``ImageContrast`` subtracts an empty image,
``EqualWeights`` is ARC without its correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._options import check_choice
from captum_mllm.attr import ContextSuppression, TokenAttribution, TokenMaps
from captum_mllm.attr.arguments import Target
from captum_mllm.attr.token_maps import token_attribution, token_maps
from captum_mllm.metrics.image_baselines import ImageBaseline, image_baseline
from captum_mllm.models import MLLM, Query
from captum_mllm.models.layout import Size, size_of
from captum_mllm.models.query import Prompt
from captum_mllm.models.states import States


class SharedMaps(TokenAttribution):
    r"""
    A method whose maps of an image are computed once at each of its sizes.

    It is for one image, whose size tells its scale.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        images (dict): The image at each size; filled with those that come.
    """

    def __init__(self, method: Attribution, images: dict[Size, Tensor]) -> None:
        super().__init__(method.forward_func)
        self.method = method
        self._images = images
        self._maps: dict[Size, TokenMaps] = {}

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        (image,) = images
        size = size_of(image)
        # The same tensor for all methods, by which the model recalls a pass.
        image = self._images.setdefault(size, image)
        if size not in self._maps:
            self._maps[size] = token_maps(self.method, (image,), query.including_prompt())
            self._share(image, query)
        found = self._maps[size]
        if query.with_prompt:
            return found
        return found._replace(maps=(found.maps[0][-len(query.answer_ids) :],))

    def _share(self, image: Tensor, query: Query) -> None:
        """Let MSEA find the pass and its layouts: it resizes the image anew for each method."""
        states = self.forward_func.recall(image, query)
        if states is not None:
            self.forward_func.keep(states, image, query, by_value=True)

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        prompts = [(images, query.including_prompt()) for images, query in prompts]
        token_attribution(self.method).prefetch(prompts)


class MapFunction(TokenAttribution):
    r"""
    A method whose maps are a function of the maps that other methods find for the same image.

    Args:
        function (Callable): From the maps of each method, (T, 1, h, w), to maps of that shape.
        *methods (Attribution): One or more methods on one :class:`~captum_mllm.MLLM`, whose maps
            have one size.
    """

    def __init__(self, function: Callable[..., Tensor], *methods: Attribution) -> None:
        super().__init__(methods[0].forward_func)
        self.function = function
        self.methods = methods

    def explain_tokens(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Target | None = None,
        **kwargs: Any,
    ) -> TokenMaps:
        r"""The function of the maps; the options go to each of the methods."""
        parts = (
            token_maps(method, images, query, target, **kwargs).maps[0] for method in self.methods
        )
        return TokenMaps((self.function(*parts),))

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        for method in self.methods:
            token_attribution(method).prefetch(prompts, **kwargs)


def product(first: Tensor, *others: Tensor) -> Tensor:
    r"""The product of the positive parts of maps."""
    found = first.relu()
    for other in others:
        found = found * other.relu()
    return found


def geometric_mean(*maps: Tensor) -> Tensor:
    r"""The geometric mean of the positive parts of maps."""
    return product(*maps) ** (1 / len(maps))


Reading = Literal["probability", "contrast", "reciprocal rank"]


class LensProbability(TokenAttribution):
    r"""
    What the logit lens says about a token in comparison with the other tokens.

    With :math:`z_{ic}` the logit of token c at image token i and :math:`p_{ic}` its softmax,

    - ``"probability"`` is :math:`p_{ic}`;
    - ``"contrast"`` is the log-probability above its mean over the image tokens,
      :math:`\mathrm{relu}(\log p_{ic} - \mathrm{mean}_j \log p_{jc})`, which takes out what the
      model says about a token wherever it looks;
    - ``"reciprocal rank"`` is one over the rank of token c among all tokens at image token i.

    It computes the logits of the whole vocabulary at each image token, so it is for benchmarks.

    Args:
        mllm (MLLM): The model.
        reading (str): One of the above. Default: "probability"

    Raises:
        ValueError: For another reading.
    """

    reads_states_only = True

    def __init__(self, mllm: MLLM, reading: Reading = "probability") -> None:
        check_choice("reading", reading, get_args(Reading))
        super().__init__(mllm)
        self.reading = reading

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        mllm: MLLM = self.forward_func
        states = mllm.states(*images, query)
        ids = states.ids if query.with_prompt else states.ids[states.n_prompt :]
        if target is not None:
            ids = torch.tensor([target[1]], device=ids.device)
        everything = torch.arange(mllm.vocabulary.size, device=ids.device)
        logits = mllm.vocabulary.scores(states.image[0][0], everything)
        return TokenMaps((states.layouts[0].paint(self._read(logits, ids).mT).unsqueeze(1),))

    def _read(self, logits: Tensor, ids: Tensor) -> Tensor:
        """From logits (N, V) to scores of the tokens (N, T)."""
        if self.reading == "probability":
            return logits.softmax(-1)[:, ids]
        if self.reading == "contrast":
            likelihood = logits.log_softmax(-1)[:, ids]
            return (likelihood - likelihood.mean(0)).relu()
        ranks = (-logits).argsort(dim=-1, stable=True).argsort(dim=-1)
        return 1.0 / (1 + ranks[:, ids]).to(logits)


class ImageContrast(TokenAttribution):
    r"""
    A method's map of an image less its map of the image's baseline, where that is positive.

    It takes out what the model says about a token even of an empty image, because of the words
    before it or of the place in the grid.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        baselines (Tensor, float or str): As for :func:`~captum_mllm.metrics.insertion_auc`.
            Default: "mean"
    """

    def __init__(self, method: Attribution, baselines: ImageBaseline = "mean") -> None:
        super().__init__(method.forward_func)
        self.method = method
        self.baselines = baselines

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        empty = tuple(image_baseline(image, self.baselines) for image in images)
        found = token_maps(self.method, images, query, target).maps
        without = token_maps(self.method, empty, query, target).maps
        return TokenMaps(tuple((one - other).relu() for one, other in zip(found, without)))


class EqualWeights(ContextSuppression):
    r"""Suppresses all earlier tokens alike. Arguments as for :class:`ContextSuppression`."""

    def weights(self, states: States) -> Tensor:
        count = len(states.ids)
        return torch.ones(count, count, device=states.ids.device)
