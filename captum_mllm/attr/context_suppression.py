"""Context suppression: take from a word's map what the words before it account for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm.attr.forward_function import check_attribution, only_query
from captum_mllm.attr.rank_gaussian_filter import rank_gaussian_filter
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.states import States


def suppress_context(maps: Tensor, context_maps: Tensor, weights: Tensor) -> Tensor:
    r"""
    Remove from each map the interference of its context, by least squares.

    With the interference :math:`I_t = \sum_j w_{tj} M_j` and its least-squares share in the map,
    :math:`s_t = \langle M_t, I_t \rangle / \langle I_t, I_t \rangle`, what remains is

    .. math::
        \mathrm{relu}(M_t - s_t I_t)

    after the estimated causal inference of TAM (arXiv 2506.23270). The scale of the weights does
    not matter. A map without interference, or whose weights are all zero, keeps its positive
    part. What cancels but for rounding becomes zero.

    Args:
        maps (Tensor): maps to clean, of shape (N, *map), any floating dtype.
        context_maps (Tensor): maps of the context, of shape (M, *map).
        weights (Tensor): weight of each context map for each map, at least 0, shape (N, M).

    Returns:
        Tensor: cleaned maps, of the shape and dtype of ``maps``, at least 0.

    Raises:
        ValueError: if the shapes do not fit, or a weight is negative or not finite.

    Examples::
        >>> import torch
        >>> from captum_mllm.attr import suppress_context
        >>> maps = torch.tensor([[3.0, 1.0]])
        >>> suppress_context(maps, torch.tensor([[0.0, 5.0]]), torch.ones(1, 1))
        tensor([[3., 0.]])
    """
    if maps.shape[1:] != context_maps.shape[1:] or weights.shape != (len(maps), len(context_maps)):
        raise ValueError(
            f"got maps {tuple(maps.shape)}, context maps {tuple(context_maps.shape)} and weights "
            f"{tuple(weights.shape)}, expected (N, *map), (M, *map) and (N, M)"
        )
    if not (torch.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("the weights have to be finite and at least 0")
    dtype = torch.promote_types(maps.dtype, torch.float32)
    own = maps.flatten(1).to(dtype)
    interference = weights.to(dtype) @ context_maps.flatten(1).to(dtype)
    # Each row on a scale of its own, so that squares neither overflow nor vanish.
    size = interference.abs().amax(1, keepdim=True) if interference.numel() else interference
    interference = interference / torch.where(size > 0, size, 1.0)
    energy = interference.square().sum(1, keepdim=True)
    share = (own * interference).sum(1, keepdim=True) / torch.where(energy > 0, energy, 1.0)
    cleaned = torch.relu(own - share.clamp(min=0) * interference)
    # Rounding left over from full cancellation must not be blown up into a map.
    rounding = 64 * torch.finfo(dtype).eps * own.abs().amax(1, keepdim=True)
    return cleaned.masked_fill(cleaned <= rounding, 0).reshape(maps.shape).to(maps.dtype)


class ContextSuppression(Attribution):
    r"""
    Wrapper that cleans each word's map of the interference of the words before it.

    The words of the prompt and the earlier words of the answer tempt a model to activate where
    *they* lie in the picture. This removes their share from each map with
    :func:`suppress_context`; subclasses weigh the words.

    Args:
        attribution_method (Attribution): a method on an :class:`~captum_mllm.MLLM`: LogitLens,
            MSEA around it, or any of Captum's.
        normalize (bool): map each word's image and text scores to [0, 1] together, as TAM does,
            so that a word that rests on text has a faint map. Default: True
        filter_size (int, optional): side of the window of :func:`rank_gaussian_filter`.
            Default: None, no filter.
    """

    explains_every_token = True

    def __init__(
        self,
        attribution_method: Attribution,
        normalize: bool = True,
        filter_size: int | None = None,
    ) -> None:
        check_attribution(attribution_method)
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method
        self.normalize = normalize
        self.filter_size = filter_size
        if filter_size is not None:
            rank_gaussian_filter(torch.zeros(1, 1), filter_size)

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @abstractmethod
    def weights(self, states: States) -> Tensor:
        r"""Interference of each token on each token, before the causal mask, (N, N) at least 0."""

    @abstractmethod
    def relevance(self, states: States) -> Tensor:
        r"""What each token gives to each token as evidence of text, (N, N) at least 0."""

    def refine(self, maps: Tensor, states: States) -> Tensor:
        r"""A last word on the cleaned maps (N, 1, h, w); here they stay as they are."""
        return maps

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): the picture, (1, 3, H, W) in [0, 1].
            target (tuple[int, int], optional): ``(t, token_id)`` for the map of one token.
                Default: None, every explained token of the query.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.
            **kwargs (Any): passed on to the wrapped method, such as the scales of MSEA.

        Returns:
            Tensor: maps of shape (T, 1, h, w), or (1, 1, h, w) for a target; at least 0, and at
            most 1 if normalised.

        Raises:
            ValueError: for several pictures, or a target that is not a token of the answer.
        """
        if not isinstance(inputs, Tensor) or len(inputs) != 1:
            raise ValueError(
                f"{self.get_name()} explains one picture at a time, expected (1, 3, H, W)"
            )
        query = only_query(additional_forward_args)
        mllm: MLLM = self.forward_func
        with mllm.remember():
            maps = token_maps(self.attribution_method, inputs, query.including_prompt(), **kwargs)
            states = mllm.states(inputs, query)
        maps = self._clean(maps.relu(), states)
        explained = maps if query.with_prompt else maps[states.n_words :]
        if target is None:
            return explained
        row = self._row(target, states.ids if query.with_prompt else states.ids[states.n_words :])
        return explained[row : row + 1]

    def attribute_text(self, inputs: Tensor, additional_forward_args: Any = None) -> Tensor:
        r"""
        Weight of each earlier word for each explained token.

        Args:
            inputs (Tensor): the picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor: of shape (T, P + T) for P words of the prompt and T of the answer, at least 0,
            and 0 for a token itself and those after it.
        """
        query = only_query(additional_forward_args)
        states = self.forward_func.states(inputs, query)
        weights = self.relevance(states).tril(-1)
        return weights if query.with_prompt else weights[states.n_words :]

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError(f"attribute_future is not implemented for {self.get_name()}")

    def _clean(self, maps: Tensor, states: States) -> Tensor:
        another_word = states.ids[:, None] != states.ids
        weights = self.weights(states).tril(-1) * another_word
        maps = self.refine(suppress_context(maps, maps, weights.to(maps)), states)
        if self.normalize:
            maps = self._normalize(maps, states)
        return maps if self.filter_size is None else rank_gaussian_filter(maps, self.filter_size)

    def _normalize(self, maps: Tensor, states: States) -> Tensor:
        """Image and text scores of each token to [0, 1] together."""
        text = context_scores(self.forward_func, states).to(maps)
        not_before = torch.ones_like(text, dtype=torch.bool).triu()
        flat = maps.flatten(1)
        highest = torch.maximum(flat.amax(1), text.masked_fill(not_before, 0).amax(1))
        lowest = torch.minimum(flat.amin(1), text.masked_fill(not_before, torch.inf).amin(1))
        span = (highest - lowest)[:, None]
        flat = (flat - lowest[:, None]) / torch.where(span > 0, span, 1.0)
        return flat.masked_fill(span <= 0, 0).reshape(maps.shape)

    @staticmethod
    def _row(target: Any, ids: Tensor) -> int:
        valid = isinstance(target, tuple) and len(target) == 2
        if not valid or not -len(ids) <= target[0] < len(ids) or ids[target[0]] != target[1]:
            raise ValueError(
                f"got target {target!r}, expected (t, token_id) with the answer's own token at t: "
                f"context suppression explains the words that were said, {ids.tolist()}"
            )
        return int(target[0]) % len(ids)


def context_scores(mllm: MLLM, states: States) -> Tensor:
    r"""How strongly each token's state says each token: :math:`\mathrm{relu}(h_j^\top w_t)`.

    Args:
        mllm (MLLM): the model.
        states (States): of one picture, with N text tokens.

    Returns:
        Tensor: of shape (N, N), row t and column j; float32.
    """
    return mllm.vocabulary.scores(states.context[0], states.ids).mT.relu()
