"""Captum's targets of answer logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def split_target(
    target: Any, batch: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    r"""Captum's targets of answer logits as rows and tokens, a (B,) tensor each.

    Raises:
        ValueError: for a target that is not ``(t, token_id)``, one for all or one for each picture.
    """
    pairs = target if isinstance(target, list) else [target] * batch
    valid = len(pairs) == batch and all(
        isinstance(pair, tuple) and len(pair) == 2 and -length <= pair[0] < length for pair in pairs
    )
    if not valid:
        raise ValueError(
            f"got target {target!r}, expected (t, token_id) with t below {length}, the number of "
            f"explained tokens, or a list of {batch} of them, one for each picture"
        )
    rows, tokens = torch.tensor(pairs, dtype=torch.long, device=device).unbind(-1)
    return rows, tokens
