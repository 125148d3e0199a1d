"""What some rows attend to, added up while the layers run."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_mllm.models.attentions import Attention, Fusion


class RawAttention:
    r"""
    The sum over layers of the attention of some rows, for which no layer's states are kept.

    Args:
        rows (Tensor): R weights for each state, shape (R, states).
        fuse (Callable): from the attention of all heads, (b, H, m, n), to (b, m, n).
    """

    def __init__(self, rows: Tensor, fuse: Fusion) -> None:
        self.rows = rows
        self.fuse = fuse
        self.total = torch.zeros_like(rows)

    def add(self, call: Attention) -> None:
        r"""Add that of a layer, whose one call has all states."""
        passed = call.pass_down(self.rows.unflatten(1, (len(call.query), -1)), self.fuse)
        self.total += passed.flatten(1)
