"""Context suppression: take from a word's map what the words before it account for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm.attr.forward_function import check_attribution, only_query
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.rank_gaussian_filter import rank_gaussian_filter
from captum_mllm.attr.scale_attribution import ScaleAttribution
from captum_mllm.attr.target_logits import check_one_picture
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.attr.wrapper_chain import wrapper_chain
from captum_mllm.models.layout import Layout, size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.targets import split_target


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
        maps (Tensor): maps to clean, of shape ``(N, *map)``, any floating dtype.
        context_maps (Tensor): maps of the context, of shape ``(M, *map)``.
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
    # Each row on a scale of its own, so that neither sums nor squares overflow or vanish.
    weights = _by_largest(weights.to(torch.promote_types(weights.dtype, dtype))).to(dtype)
    interference = _by_largest(weights @ context_maps.flatten(1).to(dtype))
    energy = interference.square().sum(1, keepdim=True)
    share = (own * interference).sum(1, keepdim=True) / torch.where(energy > 0, energy, 1.0)
    cleaned = torch.relu(own - share.clamp(min=0) * interference)
    # Rounding left over from full cancellation must not be blown up into a map.
    rounding = 64 * torch.finfo(dtype).eps * own.abs().amax(1, keepdim=True)
    return cleaned.masked_fill(cleaned <= rounding, 0).reshape(maps.shape).to(maps.dtype)


def _by_largest(rows: Tensor) -> Tensor:
    """Rows, each divided by its largest magnitude; rows of zeros as they are."""
    if not rows.numel():
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1.0)


class ContextSuppression(Attribution, ABC):
    r"""
    Wrapper that cleans each word's map of the interference of the words before it.

    The words of the prompt and the earlier words of the answer tempt a model to activate where
    *they* lie in the picture. This removes their share from each map with
    :func:`suppress_context`; subclasses weigh the words.

    Args:
        attribution_method (Attribution): a method on an :class:`~captum_mllm.MLLM`: LogitLens,
            MSEA around it, or any of Captum's.
        normalize (bool): map each word's image and text scores to [0, 1] together, as TAM does,
            so that a word that rests on text has a faint map. Text scores are logits: the maps of
            a method that are not (``in_logit_units``), such as gradients, or MSEA with a
            ``normalize`` of its own, are mapped to [0, 1] alone. Default: True
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

    @classmethod
    def get_name(cls) -> str:
        return cls.__name__

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor]): the picture, (B, 3, H, W) in [0, 1].
            target (tuple or list[tuple], optional): ``(t, token_id)``, the answer's own token at
                t, for all B pictures or for each of them, which are then explained in turn.
                Default: None, every explained token of the query, for one picture.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.
            **kwargs (Any): passed on to the wrapped method, such as the scales of MSEA, whose
                ``output_size`` is "largest" by default here.

        Returns:
            Tensor or tuple[Tensor]: maps of shape (T, 1, h, w) for every token or (B, 1, h, w) for
            a target; at least 0, and at most 1 if normalised; 0 where the model sees nothing.

        Raises:
            RuntimeError: for a gradient method under ``torch.inference_mode``.
            ValueError: for several pictures without a target, a target that is not a token of the
                answer, or a query that leaves several pictures open.
        """
        query = only_query(additional_forward_args)
        pictures = _one_input(inputs)
        if target is None:
            check_one_picture(len(pictures))
        targets = target if isinstance(target, list) else [target] * len(pictures)
        if len(targets) != len(pictures):
            raise ValueError(f"got {len(targets)} targets for {len(pictures)} pictures")
        # A single picture stays the tensor that it is, so that passes with it are remembered.
        examples = pictures.split(1) if len(pictures) > 1 else (pictures,)
        maps = [
            self._explain(picture, wanted, query, kwargs)
            for picture, wanted in zip(examples, targets)
        ]
        return format_output(isinstance(inputs, tuple), (torch.cat(maps),))

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        r"""
        Weight of each earlier word for each explained token.

        Args:
            inputs (Tensor or tuple[Tensor]): the picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor: of shape (T, P + T) for P words of the prompt and T of the answer, at least 0,
            and 0 for a token itself and those after it.
        """
        query = only_query(additional_forward_args)
        picture = _one_input(inputs)
        check_one_picture(len(picture))
        states = self.forward_func.states(picture, query)
        weights = self.relevance(states).tril(-1)
        return weights if query.with_prompt else weights[states.n_words :]

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError(f"attribute_future is not implemented for {self.get_name()}")

    def _explain(
        self, picture: Tensor, target: Any, query: Query, kwargs: dict[str, Any]
    ) -> Tensor:
        """Maps of all explained tokens of one picture, or of the one that is the target."""
        method, mllm = self.attribution_method, self.forward_func
        layouts: list[Layout] = []
        is_multi_scale = any(isinstance(found, MSEA) for found in wrapper_chain(method))
        if is_multi_scale:
            callback = kwargs.get("on_scale")

            def on_scale(found: ScaleAttribution) -> None:
                layouts.extend(layout for layout in found.layouts if layout is not None)
                if callback is not None:
                    callback(found)

            kwargs = {"output_size": "largest", **kwargs, "on_scale": on_scale}
        with mllm.remember():
            maps = token_maps(method, picture, query.including_prompt(), **kwargs)
            states = mllm.states(picture, query)
        seen = torch.zeros(size_of(maps), dtype=torch.bool)
        for layout in layouts or states.layouts:
            seen |= layout.coverage(size_of(maps))
        in_logits = getattr(method, "in_logit_units", False) and kwargs.get("normalize") is None
        maps = self._clean(maps.relu(), states, seen.to(maps.device), in_logits)
        start = 0 if query.with_prompt else states.n_words
        maps = maps[start:]
        return maps if target is None else maps[_own_row(target, states.ids[start:])]

    def _clean(self, maps: Tensor, states: States, seen: Tensor, in_logits: bool) -> Tensor:
        another_word = states.ids[:, None] != states.ids
        weights = self.weights(states).tril(-1) * another_word
        maps = self.refine(suppress_context(maps, maps, weights.to(maps)), states)
        if self.normalize:
            text = context_scores(self.forward_func, states).to(maps)
            maps = _normalize(maps, seen, text if in_logits else text[:, :0])
        if self.filter_size is not None:
            maps = rank_gaussian_filter(maps, self.filter_size)
        return maps * seen


def _own_row(target: Any, ids: Tensor) -> Tensor:
    """The row (1,) of a target, which has to be the token that stands there."""
    row, token = split_target(target, 1, len(ids), ids.device)
    if ids[row] != token:
        raise ValueError(
            f"got target {target!r}, expected (t, token_id) with the answer's own token at t: "
            f"context suppression explains the words that were said, {ids.tolist()}"
        )
    return row


def _one_input(inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    pictures = format_tensor_into_tuples(inputs)
    if len(pictures) != 1:
        raise ValueError(
            f"got {len(pictures)} open pictures, and one is explained at a time; leave the others "
            "in the query, as MLLM.prepare does without every_picture"
        )
    return pictures[0]


def _normalize(maps: Tensor, seen: Tensor, text: Tensor) -> Tensor:
    """Maps (N, 1, h, w) to [0, 1], each with its row of the text scores before it, (N, N) or none,
    by what lies in the cells that the model sees."""
    cells = maps.flatten(1)[:, seen.flatten()]
    if not cells.numel():
        return torch.zeros_like(maps)
    before = torch.ones_like(text, dtype=torch.bool).tril(-1)
    low = torch.cat([cells, text.masked_fill(~before, torch.inf)], 1).amin(1)
    high = torch.cat([cells, text.masked_fill(~before, -torch.inf)], 1).amax(1)
    span = (high - low)[:, None, None, None]
    scaled = (maps - low[:, None, None, None]) / torch.where(span > 0, span, 1.0)
    return scaled.masked_fill(span <= 0, 0)


def context_scores(mllm: MLLM, states: States) -> Tensor:
    r"""How strongly each token's state says each token: :math:`\mathrm{relu}(h_j^\top w_t)`.

    Args:
        mllm (MLLM): the model.
        states (States): of one picture, with N text tokens.

    Returns:
        Tensor: of shape (N, N), row t and column j; float32.
    """
    return mllm.vocabulary.scores(states.context[0], states.ids).mT.relu()
