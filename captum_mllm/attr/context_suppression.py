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
from captum_mllm.attr.interference import suppress_context
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

# Their name among what is derived from states.
SCORES = "context scores"


class ContextSuppression(Attribution, ABC):
    r"""
    Wrapper that cleans each word's map of the interference of the words before it.

    The words of the prompt and the earlier words of the answer tempt a model to activate where
    *they* lie in the picture. This removes their share from each map with
    :func:`suppress_context`; subclasses weigh the words.

    Args:
        attribution_method (Attribution): a method on an :class:`~captum_mllm.MLLM`: LogitLens,
            MSEA around it, or any of Captum's.
        normalize (bool, optional): map each word's image and text scores to [0, 1] together, as
            TAM does, so that a word that rests on text has a faint map. Text scores are logits: the
            maps of a method that are not (``in_logit_units``), such as gradients, or MSEA with a
            ``normalize`` of its own, are mapped to [0, 1] alone. Default: None, if words are
            suppressed
        filter_size (int, optional): side of the window of :func:`rank_gaussian_filter`.
            Default: None, no filter.
    """

    explains_every_token = True

    def __init__(
        self,
        attribution_method: Attribution,
        normalize: bool | None = None,
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
    def weights(self, states: States) -> Tensor | None:
        r"""Interference of each token on each token, before the causal mask, (N, N) at least 0;
        None if no token interferes."""

    @abstractmethod
    def relevance(self, states: States) -> Tensor:
        r"""What each token gives to each token as evidence of text, (N, N) at least 0."""

    def refine(self, maps: Tensor, states: States, rows: Tensor) -> Tensor:
        r"""A last word on the cleaned maps (R, 1, h, w) of the tokens ``rows`` out of all N; here
        they stay as they are."""
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
        start = 0 if query.with_prompt else states.n_words
        rows = torch.arange(start, len(states.ids), device=states.ids.device)
        if target is not None:
            rows = rows[_own_row(target, states.ids[start:])]
        return self._clean(maps.relu(), states, rows, seen.to(maps.device), in_logits)

    def _clean(
        self, maps: Tensor, states: States, rows: Tensor, seen: Tensor, in_logits: bool
    ) -> Tensor:
        """The maps of the tokens ``rows``, out of those of all tokens."""
        weights = self.weights(states)
        normalize = weights is not None if self.normalize is None else self.normalize
        own = maps[rows]
        if weights is not None:
            another_word = states.ids[rows, None] != states.ids
            own = suppress_context(own, maps, (weights.tril(-1)[rows] * another_word).to(maps))
        maps = self.refine(own, states, rows)
        if normalize:
            text = context_scores(self.forward_func, states).to(maps)
            before = torch.ones_like(text, dtype=torch.bool).tril(-1)
            count = len(states.ids) if in_logits else 0
            maps = _normalize(maps, seen, text[rows, :count], before[rows, :count])
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


def _normalize(maps: Tensor, seen: Tensor, text: Tensor, before: Tensor) -> Tensor:
    """Maps (R, 1, h, w) to [0, 1], each with its text scores where they are of words before it,
    (R, N) or none, by what lies in the cells that the model sees."""
    cells = maps.flatten(1)[:, seen.flatten()]
    if not cells.numel():
        return torch.zeros_like(maps)
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
    if SCORES not in states.derived:
        scores = mllm.vocabulary.scores(states.context[0], states.ids)
        states.derived[SCORES] = scores.mT.relu()
    return states.derived[SCORES]
