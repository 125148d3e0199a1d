"""The logits that the gradient of a pass starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_mllm.attr.base import check_one_image
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query, split_target


def explained_logits(mllm: MLLM, encoding: Encoding, query: Query) -> Tensor:
    r"""Logits of the explained tokens, (B, T, V), with the graph of the pass where there is one."""
    rows = encoding.explained_rows(query)
    logits = mllm.model(**encoding.inputs, logits_to_keep=rows, use_cache=False).logits
    return logits.unflatten(0, (-1, encoding.windows)).mean(1)


def target_logits(logits: Tensor, target: Any, encoding: Encoding, query: Query) -> Tensor:
    r"""The logits to differentiate one after the other.

    Args:
        logits (Tensor): of the explained tokens, shape (B, T, V).
        target (tuple, list of tuples, optional): ``(t, token_id)`` for all B images or for each
            of them. None for every explained token of one image.
        encoding (Encoding): the pass.
        query (Query): the question and the answer.

    Returns:
        Tensor: one logit for each explained token, (T,); or the sum over the images, which do
        not depend on each other, of their target's logit, (1,).

    Raises:
        ValueError: for several images without a target, or a target that is none.
    """
    count, length, vocabulary = logits.shape
    if target is not None:
        rows, tokens = split_target(target, count, length, logits.device, vocabulary)
        return logits[torch.arange(count, device=rows.device), rows, tokens].sum()[None]
    check_one_image(count)
    ids = torch.tensor(query.answer_ids, device=logits.device)
    if query.with_prompt:
        ids = torch.cat([encoding.text_ids, ids])
    return logits[0, torch.arange(length, device=ids.device), ids]
