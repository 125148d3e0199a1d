"""What a method on tokens is given: its model, its query and its target, checked."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.models.encoding import Encoding
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query, split_target

#: Captum's target for one token: its step among the explained tokens, and its vocabulary index.
Target = tuple[int, int]


def multimodal_model(forward_func: Any) -> MLLM:
    r"""The forward function, checked to be a multimodal model.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(forward_func, MLLM):
        raise TypeError(
            f"got a forward function of type {type(forward_func).__name__}, expected an MLLM; wrap "
            "the model as MLLM(model, processor) or MLLM.from_pretrained(name)"
        )
    return forward_func


def check_image_tokens(mllm: MLLM, what: str) -> None:
    r"""Refuse a model whose decoder has no image tokens.

    Args:
        mllm (MLLM): the model.
        what (str): what reads their states.

    Raises:
        ValueError: which names what to use instead.
    """
    if mllm.geometry.crosses:
        raise ValueError(
            f"{what} reads the states of image tokens, but the decoder of a "
            f"{mllm.model.config.model_type!r} has none: it looks at images by cross-attention. "
            "Use AttentionMaps(mllm, mode='raw'), which shows that attention, or a gradient or "
            "perturbation method of Captum, such as Saliency(mllm) or Occlusion(mllm)"
        )


def check_attribution(method: Any) -> Attribution:
    r"""An attribution method, checked to explain a multimodal model.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(method, Attribution):
        raise TypeError(
            f"got {type(method).__name__}, expected an instance of a Captum attribution, such as "
            "LogitLens(mllm) or IntegratedGradients(mllm)"
        )
    multimodal_model(method.forward_func)
    return method


def only_query(additional_forward_args: Any) -> Query:
    r"""The query, checked to be the only additional forward argument.

    Raises:
        TypeError: if it is not.
    """
    args = additional_forward_args
    args = args if isinstance(args, tuple) else (args,)
    if len(args) != 1 or not isinstance(args[0], Query):
        raise TypeError(
            f"got additional_forward_args={additional_forward_args!r}, expected (query,) with the "
            "query that MLLM.prepare gives"
        )
    return args[0]


def check_one_example(count: int) -> None:
    r"""Refuse to explain every token of a batch of several examples."""
    if count != 1:
        raise ValueError(
            f"got a batch of {count} images and no target; give a target for each, or explain one "
            "at a time"
        )


def own_row(target: Target, ids: Tensor) -> Tensor:
    r"""The row (1,) of a target among the explained tokens ``ids``, one of which it has to be.

    Raises:
        ValueError: if it is another token.
    """
    row, token = split_target(target, 1, len(ids), ids.device)
    if ids[row] != token:
        raise ValueError(
            f"got target {target!r}, expected (t, token_id) with the answer's own token at t: "
            f"this method explains the tokens that were said, {ids.tolist()}"
        )
    return row


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
        ValueError: for several images without a target, or something that is not a target.
    """
    count, length, vocabulary = logits.shape
    if target is not None:
        rows, tokens = split_target(target, count, length, logits.device, vocabulary)
        return logits[torch.arange(count, device=rows.device), rows, tokens].sum()[None]
    check_one_example(count)
    ids = torch.tensor(query.answer_ids, device=logits.device)
    if query.with_prompt:
        ids = torch.cat([encoding.text_ids, ids])
    return logits[0, torch.arange(length, device=ids.device), ids]
