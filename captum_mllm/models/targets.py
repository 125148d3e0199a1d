"""Captum's targets of answer logits."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeGuard

import torch
from torch import Tensor


def split_target(
    target: Any, batch: int, length: int, device: torch.device, vocabulary: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Captum's targets of answer logits as rows and tokens, a (B,) tensor each.

    Args:
        target (tuple or list of tuples): ``(t, token_id)``, for all pictures or for each; ``t``
            counts from the end where it is negative.
        batch (int): how many pictures there are.
        length (int): how many tokens are explained.
        device (torch.device): where the tensors are to be.
        vocabulary (int, optional): how many tokens there are, to be checked. Default: None

    Raises:
        ValueError: for a target that is not ``(t, token_id)``, one for all or one for each picture.
    """
    pairs = target if isinstance(target, list) else [target] * batch
    valid = len(pairs) == batch and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(map(is_integer, pair))
        and -length <= pair[0] < length
        and pair[1] >= 0
        and (vocabulary is None or pair[1] < vocabulary)
        for pair in pairs
    )
    if not valid:
        limit = "" if vocabulary is None else f" below {vocabulary}"
        raise ValueError(
            f"got target {target!r}, expected (t, token_id), integers, with t below {length}, the "
            f"number of explained tokens, and a token{limit}; or a list of {batch} of them, one "
            "for each picture"
        )
    rows, tokens = torch.tensor(pairs, dtype=torch.long, device=device).unbind(-1)
    return rows, tokens


def is_integer(value: Any) -> TypeGuard[int]:
    r"""Whether a value is an integer, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)
