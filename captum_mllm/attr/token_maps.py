"""One map for each explained token, from any attribution method."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm.attr.features import Features
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.segment_attribution import SegmentAttribution
from captum_mllm.attr.token_by_token import TokenByToken
from captum_mllm.attr.word_gradients import with_word_embeddings
from captum_mllm.models.query import Query

# What MSEA would take for arguments that lie on the pixels, and here lies on segments.
_ON_SEGMENTS = ("baselines", "sliding_window_shapes", "strides")


class TokenMaps(NamedTuple):
    r"""What a method says of each explained token.

    Args:
        maps (Tensor): of the picture, (N, 1, h, w), channels summed; detached, float32 at least.
        words (Tensor, optional): a value for each of the first n of the earlier tokens, (N, n);
            None where the method was not asked for words.
    """

    maps: Tensor
    words: Tensor | None


def token_maps(
    method: Attribution,
    image: Tensor,
    query: Query,
    show_progress: bool = False,
    **kwargs: Any,
) -> Tensor:
    r"""A map of the picture for each explained token of a query; see :func:`maps_and_words`.

    Returns:
        Tensor: of shape (N, 1, h, w), channels summed; detached, float32 at least.
    """
    return maps_and_words(method, image, query, show_progress, **kwargs).maps


def maps_and_words(
    method: Attribution,
    image: Tensor,
    query: Query,
    show_progress: bool = False,
    features: Features | None = None,
    **kwargs: Any,
) -> TokenMaps:
    r"""A map of the picture and values of words for each explained token of a query.

    A method that can do so answers for all tokens in one call, as do those that perturb segments;
    any other of Captum's is called with the target of each token in turn, within MSEA at each
    scale.

    Args:
        method (Attribution): a method on a multimodal model.
        image (Tensor): the picture, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        show_progress (bool): show a bar over the scales of MSEA, or else over the tokens where
            they take turns, or over what a method perturbs.
        features (Features, optional): segments of the picture, and words. Default: None, neither.
        **kwargs (Any): passed on to the method.

    Raises:
        TypeError: for a method that takes no segments or words.
        ValueError: if the arguments ask for something else than one map for each token.
    """
    if kwargs.get("return_convergence_delta") or not kwargs.get("combine", True):
        raise ValueError(
            "each word has one map here; leave out return_convergence_delta and combine=False, or "
            f"ask {method.get_name()} itself"
        )
    inputs: Any = image
    segments, words = (None, None) if features is None else (features.segments, features.words)
    if segments is not None and _passes_on(method):
        kwargs["features"] = features
    elif segments is not None:
        on_segments = {name: kwargs.pop(name) for name in _ON_SEGMENTS if name in kwargs}
        method = _innermost(
            method, lambda inner: SegmentAttribution(inner, segments, words, **on_segments)
        )
    else:
        if words is not None:
            inputs, kwargs = with_word_embeddings(method, image, query, words, kwargs)
        method = _innermost(method, _in_turn)
    if show_progress and hasattr(method, "attribution_method"):
        kwargs["show_progress"] = True
    found = method.attribute(inputs, additional_forward_args=(query,), **kwargs)
    maps, *rest = (
        part.detach().to(torch.promote_types(part.dtype, torch.float32))
        for part in format_tensor_into_tuples(found)
    )
    values = None
    if rest:
        # Those of embeddings have a value for each dimension.
        values = rest[0].sum(-1) if rest[0].ndim == 3 else rest[0]
    return TokenMaps(maps.sum(1, keepdim=True), values)


def _passes_on(method: Attribution) -> bool:
    """Whether it is a wrapper that asks for the maps of what it wraps itself, as ARC does."""
    while isinstance(method, MSEA):
        method = method.attribution_method
    every_token = getattr(method, "explains_every_token", False)
    return every_token and hasattr(method, "attribution_method")


def _innermost(method: Attribution, replace: Any) -> Attribution:
    """The method within MSEA replaced, in copies of what is around it."""
    if not isinstance(method, MSEA):
        return replace(method)
    wrapper = copy.copy(method)
    wrapper.attribution_method = _innermost(method.attribution_method, replace)
    return wrapper


def _in_turn(method: Attribution) -> Attribution:
    return method if getattr(method, "explains_every_token", False) else TokenByToken(method)
