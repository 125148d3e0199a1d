"""ContextSuppression: takes from each token's map what the tokens before it account for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm._options import check_flag
from captum_mllm._probability import known_probability
from captum_mllm.attr.arguments import (
    Target,
    check_attribution,
    check_one_example,
    only_query,
    own_row,
)
from captum_mllm.attr.base import TokenMaps
from captum_mllm.attr.features import Features
from captum_mllm.attr.functional import check_strength, rank_gaussian_filter, suppress_context
from captum_mllm.attr.image_shares import image_units
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
    *they* lie in the image. This removes a part of their share from each map with
    :func:`suppress_context`; subclasses weigh the tokens.

    Several images are one map in parts: the share is fitted to all of them together, as for the
    tiles that a model cuts one image into. So an image keeps its strength beside the others, and
    interference that is strong in one image is not read out of the noise of another.

    Args:
        attribution_method (Attribution): a method on an :class:`~captum_mllm.MLLM`: LogitLens,
            MSEA around it, or any of Captum's.
        normalize (bool): map each token's image and text scores to [0, 1] together, as TAM does,
            so that a token that rests on text has a faint map. Text scores are logits: maps in
            other units, such as gradients, or those of MSEA with ``normalize="max"`` or
            ``"sum"``, are mapped to [0, 1] alone. Default: False
        filter_size (int, optional): side of the window of :func:`rank_gaussian_filter`.
            Default: None, no filter.
        strength (float, optional): how much of the interference's share is taken out, in [0, 1].
            If None, the cosine of the map and its interference. Default: 0.5
    """

    def __init__(
        self,
        attribution_method: Attribution,
        normalize: bool = False,
        filter_size: int | None = None,
        strength: float | None = 0.5,
    ) -> None:
        check_attribution(attribution_method)
        super().__init__(attribution_method)
        check_flag("normalize", normalize)
        self.normalize = normalize
        self.filter_size = filter_size
        self.strength = strength
        check_strength(strength)
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

    def refine(self, maps: Tensor, states: States, rows: Tensor, image: int = 0) -> Tensor:
        r"""A last word on the cleaned maps (R, 1, h, w) of one of the explained images, for the
        tokens ``rows`` out of all N; here they stay as they are."""
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
            ValueError: for a target that is not a token of the answer.
        """
        mllm: MLLM = self.forward_func
        asked = query.including_prompt() if self.suppresses else query
        context = None
        with mllm.remember():
            if self.suppresses and query.instead_of:
                # A word interferes by what says it, not by what tells it from another word.
                plain = replace(asked, instead_of=())
                self.prefetch([(images, plain)], **kwargs)
                quiet = {name: kwargs[name] for name in kwargs if name != "on_scale"}
                context = token_maps(
                    self.attribution_method, images, plain, None, features, **quiet
                ).maps
                asked = query
            found = token_maps(
                self.attribution_method, images, asked, None, features, show_progress, **kwargs
            )
            states = mllm.states(*images, query)
        first = 0 if query.with_prompt else states.n_prompt
        rows = torch.arange(first, len(states.ids), device=states.ids.device)
        if target is not None:
            rows = rows[own_row(target, states.ids[first:])]
        seen = found.seen or tuple(
            seen_cells([layout], size_of(each)) for layout, each in zip(states.layouts, found.maps)
        )
        # Maps of the explained tokens alone begin with the first of them.
        start = len(states.ids) - len(found.maps[0])
        units = image_units(self.attribution_method, images, states.layouts, features)
        cleaned = self._clean(found, context or found.maps, seen, states, rows, rows - start, units)
        text = found.text
        if text is not None and not query.with_prompt:
            text = text[len(text) - len(query.answer_ids) :]
        return TokenMaps(
            cleaned,
            None if text is None else self.weigh_text(text, states, query),
            unit="" if self.normalize else found.unit,
            seen=seen,
            scales=tuple(self._explained(scale, query, rows - start) for scale in found.scales),
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        query = only_query(additional_forward_args)
        images = format_tensor_into_tuples(inputs)
        check_one_example(len(images[0]))
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
        found: TokenMaps,
        context: Sequence[Tensor],
        seen: Sequence[Tensor],
        states: States,
        rows: Tensor,
        own_maps: Tensor,
        units: Sequence[float],
    ) -> tuple[Tensor, ...]:
        """The maps of the tokens ``rows``, which are those at ``own_maps``."""
        weights = self.weights(states)
        own = [each[own_maps].relu() for each in found.maps]
        if weights is not None:
            another_word = states.ids[rows, None] != states.ids
            weights = (weights.tril(-1)[rows] * another_word).to(own[0])
            own = suppress_together(
                own, [each.relu() for each in context], weights, units, self.strength
            )
        own = [self.refine(each, states, rows, image) for image, each in enumerate(own)]
        seen = [cells.to(each.device) for cells, each in zip(seen, own)]
        if self.normalize:
            text = context_scores(self.forward_func, states).to(own[0])
            before = torch.ones_like(text, dtype=torch.bool).tril(-1)
            count = len(states.ids) if found.in_logits else 0
            own = _normalize(own, seen, text[rows, :count], before[rows, :count])
        if self.filter_size is not None:
            own = [rank_gaussian_filter(each, self.filter_size) for each in own]
        return tuple(each * cells for each, cells in zip(own, seen))


def suppress_together(
    maps: Sequence[Tensor],
    context_maps: Sequence[Tensor],
    weights: Tensor,
    units: Sequence[float],
    strength: float | None = 1.0,
) -> list[Tensor]:
    r"""
    :func:`suppress_context` of the maps of several images, with one least-squares share for all.

    Args:
        maps (Sequence[Tensor]): for each image the maps to clean, (R, 1, h, w).
        context_maps (Sequence[Tensor]): for each image those of the context, (N, 1, h, w).
        weights (Tensor): as for :func:`suppress_context`, (R, N).
        units (Sequence[float]): how many tokens, pixels or segments each image has. They count in
            the fit, and not the cells of its map, of which one image may have more to a token.
        strength (float, optional): as for :func:`suppress_context`. Default: 1.0

    Returns:
        list[Tensor]: the cleaned maps of each image.
    """
    if len(maps) == 1:
        return [suppress_context(maps[0], context_maps[0], weights, strength)]
    # What a cell counts is the square of what it is multiplied with.
    roots = [math.sqrt(unit / each[0].numel()) for unit, each in zip(units, maps)]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) * root for part, root in zip(parts, roots)], dim=1)

    cleaned = suppress_context(joined(maps), joined(context_maps), weights, strength)
    parts = cleaned.split([each[0].numel() for each in maps], dim=1)
    return [part.reshape(each.shape) / root for part, each, root in zip(parts, maps, roots)]


def _normalize(
    maps: Sequence[Tensor], seen: Sequence[Tensor], text: Tensor, before: Tensor
) -> list[Tensor]:
    """Maps (R, 1, h, w) of each image to [0, 1], those of a token together with its text scores
    where they are of words before it, (R, N) or (R, 0), by the range of values in the cells that
    the model sees."""
    cells = torch.cat([each.flatten(1)[:, at.flatten()] for each, at in zip(maps, seen)], dim=1)
    if not cells.numel():
        return [torch.zeros_like(each) for each in maps]
    low = torch.cat([cells, text.masked_fill(~before, torch.inf)], 1).amin(1)
    high = torch.cat([cells, text.masked_fill(~before, -torch.inf)], 1).amax(1)
    low, span = low[:, None, None, None], (high - low)[:, None, None, None]
    scaled = [(each - low) / torch.where(span > 0, span, 1.0) for each in maps]
    return [each.masked_fill(span <= 0, 0) for each in scaled]
