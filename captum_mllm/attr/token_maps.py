"""One map for each explained token, from any attribution method."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm._captum import progress
from captum_mllm.attr.msea import MSEA
from captum_mllm.models.mllm import MLLM
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
    with the target of each token in turn.

    Args:
        method (Attribution): a method on a multimodal model.
        image (Tensor): the picture, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        show_progress (bool): show a bar over the tokens where they take turns, else over the
            scales of MSEA.
        **kwargs (Any): passed on to the method.

    Returns:
        Tensor: of shape (N, 1, h, w), channels summed; detached.
    """
    if explains_every_token(method):
        if show_progress and hasattr(method, "attribution_method"):
            kwargs["show_progress"] = True
        maps = method.attribute(image, additional_forward_args=(query,), **kwargs)
        return maps.detach().sum(1, keepdim=True)
    mllm: MLLM = method.forward_func
    ids = mllm.explained_ids(image, query)
    name = method.get_name()
    turns = enumerate(ids.tolist())
    bar = progress(turns, desc=name, total=len(ids)) if show_progress else turns
    maps = [
        method.attribute(image, target=(row, token), additional_forward_args=(query,), **kwargs)
        .detach()
        .sum(1, keepdim=True)
        for row, token in bar
    ]
    return torch.cat(maps)


def explains_every_token(method: Attribution) -> bool:
    r"""Whether a method gives all explained tokens a map in one call, without a target."""
    while isinstance(method, MSEA):
        method = method.attribution_method
    return getattr(method, "explains_every_token", False)
