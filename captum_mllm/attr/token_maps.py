"""One map for each explained token, from any attribution method."""

from __future__ import annotations

import copy
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.token_by_token import TokenByToken
from captum_mllm.models.query import Query


def token_maps(
    method: Attribution,
    image: Tensor,
    query: Query,
    show_progress: bool = False,
    **kwargs: Any,
) -> Tensor:
    r"""A map of the picture for each explained token of a query.

    A method that can do so answers for all tokens in one call; any other of Captum's is called
    with the target of each token in turn, within MSEA at each scale.

    Args:
        method (Attribution): a method on a multimodal model.
        image (Tensor): the picture, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        show_progress (bool): show a bar over the scales of MSEA, or else over the tokens where
            they take turns.
        **kwargs (Any): passed on to the method.

    Returns:
        Tensor: of shape (N, 1, h, w), channels summed; detached, float32 at least.

    Raises:
        ValueError: if the arguments ask for something else than one map for each token.
    """
    if kwargs.get("return_convergence_delta") or not kwargs.get("combine", True):
        raise ValueError(
            "each word has one map here; leave out return_convergence_delta and combine=False, or "
            f"ask {method.get_name()} itself"
        )
    method = _for_every_token(method)
    if show_progress and hasattr(method, "attribution_method"):
        kwargs["show_progress"] = True
    maps = method.attribute(image, additional_forward_args=(query,), **kwargs).detach()
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).sum(1, keepdim=True)


def _for_every_token(method: Attribution) -> Attribution:
    if getattr(method, "explains_every_token", False):
        return method
    if not isinstance(method, MSEA):
        return TokenByToken(method)
    wrapper = copy.copy(method)
    wrapper.attribution_method = _for_every_token(method.attribution_method)
    return wrapper
