r"""Attention that trains fast on CPUs: in float32, and batched in Qwen2-VL's vision tower.

On CPUs the backward pass of attention takes twice as long in bfloat16 as in float32, while matrix
products gain several times over. Qwen2-VL's tower in transformers takes one image after the other
through the attention, since they may differ in size, and its convolution over single patches is
slow on CPUs. With one size for all, the attention runs batched and the convolution is a matrix
product. The result is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, Qwen2VLForConditionalGeneration

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


def _embed_patches(embedding: Any, patches: Tensor) -> Tensor:
    weight = embedding.proj.weight.flatten(1)
    return F.linear(patches.view(-1, weight.shape[1]), weight)


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-second, first), dim=-1) * sine


def _attend_blocks(
    attention: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    tokens, images = hidden_states.shape[0], cu_seqlens.numel() - 1
    projected = attention.qkv(hidden_states)
    shape = (images, tokens // images, 3, attention.num_heads, -1)
    query, key, value = projected.view(shape).permute(2, 0, 3, 1, 4).unbind(0)
    # The same rotation for every image, since all have the same grid.
    cosine, sine = (part[: shape[1]].to(projected.dtype) for part in position_embeddings)
    attended = float32_attention(
        _rotate(query, cosine, sine), _rotate(key, cosine, sine), value, None, attention.scaling
    )
    return attention.proj(attended.transpose(1, 2).reshape(tokens, -1))


def use_fast_vision(model: Qwen2VLForConditionalGeneration) -> None:
    r"""Make a Qwen2-VL's vision tower faster, in place, for batches of images of one size.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model. Its weights stay as they
            are; with images of several sizes in a batch its results are wrong from here on.
    """
    visual = model.model.visual
    visual.patch_embed.forward = partial(_embed_patches, visual.patch_embed)
    for block in visual.blocks:
        block.attn.forward = partial(_attend_blocks, block.attn)
