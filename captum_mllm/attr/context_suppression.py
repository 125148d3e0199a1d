"""ContextSuppression: takes from each token's map what the tokens before it account for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm._probability import known_probability
from captum_mllm.attr.base import (
    Target,
    TokenMaps,
    check_attribution,
    check_one_image,
    only_query,
    own_row,
)
from captum_mllm.attr.features import Features
from captum_mllm.attr.functional import rank_gaussian_filter, suppress_context
from captum_mllm.attr.resizing import seen_cells
from captum_mllm.attr.scale_mean import ScaleAttribution
from captum_mllm.attr.text_attribution import context_scores, text_attribution
from captum_mllm.attr.token_maps import TokenWrapper, token_maps
from captum_mllm.models.layout import size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query
from captum_mllm.models.states import States


class ContextSuppression(TokenWrapper):
    r"""
    Wrapper that cleans each word's map of the interference of the words before it.

    The tokens of the prompt and the earlier tokens of the answer tempt a model to activate where
    *they* lie in the image. This removes their share from each map with
    :func:`suppress_context`; subclasses weigh the tokens.

    Args:
        attribution_method (Attribution): a method on an :class:`~captum_mllm.MLLM`: LogitLens,
            MSEA around it, or any of Captum's.
        normalize (bool): map each token's image and text scores to [0, 1] together, as TAM does,
            so that a token that rests on text has a faint map. Text scores are logits: maps in
            other units, such as gradients, or those of MSEA with ``normalize="max"`` or
            ``"sum"``, are mapped to [0, 1] alone. Default: False
        filter_size (int, optional): side of the window of :func:`rank_gaussian_filter`.
            Default: None, no filter.
        strength (float): how much of the interference's share is taken out, in [0, 1].
            Default: 1.0
    """

    def __init__(
        self,
        attribution_method: Attribution,
        normalize: bool = False,
        filter_size: int | None = None,
        strength: float = 1.0,
    ) -> None:
        check_attribution(attribution_method)
        super().__init__(attribution_method)
        self.normalize = normalize
        self.filter_size = filter_size
        self.strength = strength
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}, expected a number in [0, 1]")
        if filter_size is not None:
            rank_gaussian_filter(torch.zeros(1, 1), filter_size)

    @abstractmethod
    def weights(self, states: States) -> Tensor | None:
        r"""Interference of each token on each token, before the causal mask, (N, N) at least 0;
        None if no token interferes."""

    def weigh_text(self, weights: Tensor, states: States, query: Query) -> Tensor:
        r"""The text attribution of the wrapped method, (T, n) for the first n of N tokens, weighed
        by the method; here it is not changed."""
        return weights

    def refine(self, maps: Tensor, states: States, rows: Tensor) -> Tensor:
        r"""A last word on the cleaned maps (R, 1, h, w) of the tokens ``rows`` out of all N; here
        they stay as they are."""
        return maps

    @property
    def suppresses(self) -> bool:
        """Whether tokens interfere, so that the maps of all of them are needed."""
        return True

    @classmethod
    def get_name(cls) -> str:
        return cls.__name__

    def explain_tokens(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Target | None = None,
        features: Features | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> TokenMaps:
        r"""Cleaned maps, at least 0, and at most 1 if normalised; 0 where the model sees nothing.
        A target has to be the answer's own token at t. See
        :meth:`TokenAttribution.explain_tokens`.

        Raises:
            ValueError: for a target that is not a token of the answer, or a query that leaves
                several images open.
        """
        mllm: MLLM = self.forward_func
        _check_one(images)
        asked = query.including_prompt() if self.suppresses else query
        with mllm.remember():
            found = token_maps(
                self.attribution_method, images, asked, None, features, show_progress, **kwargs
            )
            states = mllm.states(*images, query)
        (maps,) = found.maps
        first = 0 if query.with_prompt else states.n_prompt
        rows = torch.arange(first, len(states.ids), device=states.ids.device)
        if target is not None:
            rows = rows[own_row(target, states.ids[first:])]
        cells = seen_cells(states.layouts, size_of(maps)) if found.seen is None else found.seen[0]
        # Maps of the explained tokens alone begin with the first of them.
        start = len(states.ids) - len(maps)
        cleaned = self._clean(
            maps.relu(), states, rows, rows - start, cells.to(maps.device), found.in_logits
        )
        text = found.text
        if text is not None and not query.with_prompt:
            text = text[len(text) - len(query.answer_ids) :]
        return TokenMaps(
            (cleaned,),
            None if text is None else self.weigh_text(text, states, query),
            unit="" if self.normalize else found.unit,
            seen=(cells,),
            scales=tuple(self._explained(scale, query, rows - start) for scale in found.scales),
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        query = only_query(additional_forward_args)
        images = _check_one(format_tensor_into_tuples(inputs))
        check_one_image(len(images[0]))
        with self.forward_func.remember():
            weights = text_attribution(self.attribution_method, images, query)
            return self.weigh_text(weights, self.forward_func.states(*images, query), query)

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        if self.suppresses:
            prompts = [(images, query.including_prompt()) for images, query in prompts]
        super().prefetch(prompts, **kwargs)

    def _explained(self, scale: ScaleAttribution, query: Query, rows: Tensor) -> ScaleAttribution:
        """A scale of all tokens, for the explained ones."""
        parts = tuple(part[rows] for part in format_tensor_into_tuples(scale.attributions))
        maps = format_output(isinstance(scale.attributions, tuple), parts)
        ask = partial(known_probability, self.forward_func, scale.inputs, None, (query,))
        return replace(scale, attributions=maps, ask_probability=ask)

    def _clean(
        self,
        maps: Tensor,
        states: States,
        rows: Tensor,
        own_maps: Tensor,
        seen: Tensor,
        in_logits: bool,
    ) -> Tensor:
        """The maps of the tokens ``rows``, which are those at ``own_maps``."""
        weights = self.weights(states)
        own = maps[own_maps]
        if weights is not None:
            another_word = states.ids[rows, None] != states.ids
            weights = (weights.tril(-1)[rows] * another_word).to(maps)
            own = suppress_context(own, maps, weights, self.strength)
        maps = self.refine(own, states, rows)
        if self.normalize:
            text = context_scores(self.forward_func, states).to(maps)
            before = torch.ones_like(text, dtype=torch.bool).tril(-1)
            count = len(states.ids) if in_logits else 0
            maps = _normalize(maps, seen, text[rows, :count], before[rows, :count])
        if self.filter_size is not None:
            maps = rank_gaussian_filter(maps, self.filter_size)
        return maps * seen


def _check_one(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if len(images) != 1:
        raise ValueError(
            f"got {len(images)} open images, and one is explained at a time; leave the others in "
            "the query, as MLLM.prepare does without every_image"
        )
    return images


def _normalize(maps: Tensor, seen: Tensor, text: Tensor, before: Tensor) -> Tensor:
    """Maps (R, 1, h, w) to [0, 1], each with its text scores where they are of words before it,
    (R, N) or (R, 0), by the range of values in the cells that the model sees."""
    cells = maps.flatten(1)[:, seen.flatten()]
    if not cells.numel():
        return torch.zeros_like(maps)
    low = torch.cat([cells, text.masked_fill(~before, torch.inf)], 1).amin(1)
    high = torch.cat([cells, text.masked_fill(~before, -torch.inf)], 1).amax(1)
    span = (high - low)[:, None, None, None]
    scaled = (maps - low[:, None, None, None]) / torch.where(span > 0, span, 1.0)
    return scaled.masked_fill(span <= 0, 0)
