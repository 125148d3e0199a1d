r"""A faster forward pass of Qwen2-VL's vision tower for batches of pictures of one size.

The tower of transformers takes one picture after the other through the attention, since they may
differ in size, and its convolution over single patches is slow on CPUs. With one size for all, the
attention runs batched and the convolution is a matrix product. The result is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.demo.training.attention import float32_attention


def _embed_patches(embedding: Any, patches: Tensor) -> Tensor:
    weight = embedding.proj.weight.flatten(1)
    return F.linear(patches.view(-1, weight.shape[1]), weight)


def _rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-second, first), dim=-1) * sine


def _attend(
    attention: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    tokens, pictures = hidden_states.shape[0], cu_seqlens.numel() - 1
    projected = attention.qkv(hidden_states)
    shape = (pictures, tokens // pictures, 3, attention.num_heads, -1)
    query, key, value = projected.view(shape).permute(2, 0, 3, 1, 4).unbind(0)
    # The same rotation for every picture, since all have the same grid.
    cosine, sine = (part[: shape[1]].to(projected.dtype) for part in position_embeddings)
    attended = float32_attention(
        _rotate(query, cosine, sine), _rotate(key, cosine, sine), value, None, attention.scaling
    )
    return attention.proj(attended.transpose(1, 2).reshape(tokens, -1))


def use_fast_vision(model: Qwen2VLForConditionalGeneration) -> None:
    r"""Make a Qwen2-VL's vision tower faster, in place, for batches of pictures of one size.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model. Its weights stay as they
            are; with pictures of several sizes in a batch its results are wrong from here on.
    """
    visual = model.model.visual
    visual.patch_embed.forward = partial(_embed_patches, visual.patch_embed)
    for block in visual.blocks:
        block.attn.forward = partial(_attend, block.attn)
