"""A tiny language model of the class and the chat format of SmolLM2, with random weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from captum_mllm.datasets import CAPTION_STYLES, COLORS, SHAPES, caption, sample_scene
from captum_mllm.datasets.descriptions import describe
from captum_mllm.datasets.phrasing import natural
from tests.models.tiny_models import byte_level

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _texts() -> list[str]:
    texts = [f" {word} {word.capitalize()}" for word in (*SHAPES, *COLORS)] * 20
    texts += [" left right top bottom striped plain background dark light user assistant"] * 20
    for seed in range(60):
        generator = np.random.default_rng(seed)
        scene = sample_scene(generator)
        texts += [str(natural(caption(scene, style))) for style in CAPTION_STYLES]
        exchange = describe(scene, generator)
        texts += [exchange.question, str(exchange.answer)]
    return texts


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    unknown, start, end = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(_texts(), 600, _SPECIAL),
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        pad_token=end,
    )


def save_tiny_language_model(folder: Path, width: int = 144) -> None:
    """Write the model and its tokenizer as ``save_pretrained`` does."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.1,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
