r"""Attention in float32 where the rest of a step runs in bfloat16.

On CPUs the backward pass of attention takes twice as long in bfloat16 as in float32, while matrix
products gain several times over.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

_NAME = "float32_sdpa"


def float32_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    r"""Scaled dot-product attention in float32, whatever autocast is set to.

    Args:
        query (Tensor): (B, H, S, D).
        key (Tensor): (B, H, T, D).
        value (Tensor): (B, H, T, D).
        mask (Tensor, optional): (S, T) or a shape that broadcasts to (B, H, S, T), bool: who may
            attend to whom. If None, all to all.
        scale (float, optional): The factor of the scores. If None, D ** -0.5. Default: None

    Returns:
        Tensor: (B, H, S, D), float32.
    """
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask, scale=scale
        )


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    attended = float32_attention(query, key, value, attention_mask, scaling)
    return attended.transpose(1, 2).contiguous(), None


def use_float32_attention(model: Any) -> None:
    r"""Make all layers of a model attend in float32, in place.

    From here on the mask has to be given as a tensor of four dimensions: there is no other.

    Args:
        model (transformers.PreTrainedModel): The model; its weights stay as they are.
    """
    AttentionInterface.register(_NAME, _attend)
    model.set_attn_implementation(_NAME)
