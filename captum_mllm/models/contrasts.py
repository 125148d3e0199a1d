"""Contrasts: the logit of a token less that of another one, which might have been said instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.models.query import Query

#: From the place of a token in the answer to what might have been said there.
OtherTokens = tuple[Tensor, Tensor]


def contrast(query: Query, t: int, instead_of: int, count: int, vocabulary: int) -> Query:
    r"""The query with the explained token t in contrast to another one.

    Args:
        query (Query): the question and the answer.
        t (int): which of the explained tokens, from the end where it is negative.
        instead_of (int): vocabulary index of the other token.
        count (int): how many tokens are explained.
        vocabulary (int): how many tokens there are.

    Raises:
        TypeError: for something that is not an integer.
        ValueError: for a token that is not explained or not in the vocabulary, or the answer's own.
    """
    if not is_integer(t) or not is_integer(instead_of):
        raise TypeError(
            f"got the contrast of token {t!r} and {instead_of!r}, expected a place among the "
            "explained tokens and a vocabulary index, integers"
        )
    if not -count <= t < count:
        raise ValueError(
            f"got the contrast of token {t}, expected one of the {count} explained tokens, "
            f"{-count} to {count - 1}"
        )
    if not 0 <= instead_of < vocabulary:
        raise ValueError(
            f"got token {instead_of} for a contrast, expected one of the vocabulary, 0 to "
            f"{vocabulary - 1}"
        )
    # From the end, where the answer is, a place is the same with the prompt and without it.
    place = int(t) - count if t >= 0 else int(t)
    if place >= -len(query.answer_ids) and query.answer_ids[place] == instead_of:
        raise ValueError(
            f"got token {instead_of} for a contrast with itself, expected another one than the "
            "answer has there"
        )
    others = tuple(pair for pair in query.instead_of if pair[0] != place)
    return replace(query, instead_of=(*others, (place, int(instead_of))))


def without_alternative(
    target: Any, query: Query, count: Callable[[], int], vocabulary: int
) -> tuple[Query, Any]:
    r"""The query with the contrast that a target ``(t, token_id, instead_of)`` asks for, and the
    target as ``(t, token_id)``; other targets as they are.

    Args:
        target (Any): the target of one example.
        query (Query): the question and the answer.
        count (Callable): gives how many tokens are explained.
        vocabulary (int): how many tokens there are.

    Raises:
        TypeError: as :func:`contrast`.
        ValueError: as :func:`contrast`, and for the same token twice.
    """
    if not isinstance(target, tuple) or len(target) != 3:
        return query, target
    t, token, instead_of = target
    if token == instead_of:
        raise ValueError(f"got target {target!r}, a token in contrast to itself")
    # The answer may have either of the two, or a third.
    given = replace(query, answer_ids=())
    found = contrast(given, t, instead_of, count(), vocabulary)
    return replace(query, instead_of=found.instead_of), (t, token)


def alternatives(query: Query, rows: Tensor, count: int) -> OtherTokens:
    r"""Which of some explained tokens have an alternative, and which.

    Args:
        query (Query): the question and the answer.
        rows (Tensor): their places among the explained tokens, (R,).
        count (int): how many tokens are explained.

    Returns:
        tuple[Tensor, Tensor]: indices into ``rows``, (C,), and vocabulary indices, (C,).
    """
    wanted = {count + place: token for place, token in query.instead_of}
    found = [(index, wanted[row]) for index, row in enumerate(rows.tolist()) if row in wanted]
    pairs = torch.tensor(found, dtype=torch.long, device=rows.device).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def subtract_alternatives(logits: Tensor, query: Query, of: Tensor | None = None) -> Tensor:
    r"""Logits of explained tokens less those of their alternatives, where they have some.

    Probabilities do not change by it: it moves all logits of a token by the same number.

    Args:
        logits (Tensor): of the explained tokens, (B, T, V), or of their own tokens alone, (B, T).
        query (Query): the question and the answer.
        of (Tensor, optional): logits of the alternatives, (B, C). Default: None, those in
            ``logits``
    """
    if not query.instead_of:
        return logits
    count = logits.shape[1]
    every = torch.arange(count, device=logits.device)
    rows, tokens = alternatives(query, every, count)
    taken = logits[:, rows, tokens] if of is None else of
    offsets = logits.new_zeros(logits.shape[:2]).index_copy(1, rows, taken.to(logits.dtype))
    return logits - (offsets if logits.ndim == 2 else offsets[..., None])
