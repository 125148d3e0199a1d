"""Tiny random models of real architectures, with real processors, built offline."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from captum_mllm.models.loading import image_only

CORPUS = [
    "user: assistant: what is in the image ? describe this image .",
    "a cat and a dog sit on the red mat . yes no one two three",
]
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)

TinyModel = tuple[PreTrainedModel, ProcessorMixin]


def tokenizer(
    named: dict[str, str] | None = None, special: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it encodes any text without loss."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=dict(named or {}),
    )
    wrapped.add_tokens(list(special), special_tokens=True)
    return wrapped


def chat_template(image: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )


def text_config(tok: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    defaults = dict(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return {**defaults, **changes}


QWEN_SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tok.convert_tokens_to_ids(list(QWEN_SPECIAL))))


def _rope(**changes: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, **changes}


def qwen2_vl() -> TinyModel:
    tok = tokenizer(special=QWEN_SPECIAL)
    processor = image_only(transformers.Qwen2VLProcessor)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
        ),
        tokenizer=tok,
        chat_template=chat_template(QWEN_IMAGE),
    )
    config = transformers.Qwen2VLConfig(
        text_config=text_config(tok, rope_parameters=_rope()),
        vision_config=dict(
            depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=14
        ),
        **_qwen_ids(tok),
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> TinyModel:
    tok = tokenizer(special=QWEN_SPECIAL)
    processor = image_only(transformers.Qwen2_5_VLProcessor)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
        ),
        tokenizer=tok,
        chat_template=chat_template(QWEN_IMAGE),
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(tok, rope_parameters=_rope()),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=4,
            out_hidden_size=32,
            patch_size=14,
            window_size=112,
            fullatt_block_indexes=[1],
        ),
        **_qwen_ids(tok),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> TinyModel:
    tok = tokenizer(special=QWEN_SPECIAL)
    processor = image_only(transformers.Qwen3VLProcessor)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 1280}, patch_size=16
        ),
        tokenizer=tok,
        chat_template=chat_template(QWEN_IMAGE),
    )
    config = transformers.Qwen3VLConfig(
        text_config=text_config(tok, head_dim=8, rope_parameters=_rope(mrope_interleaved=True)),
        vision_config=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=64,
            num_heads=4,
            out_hidden_size=32,
            patch_size=16,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        **_qwen_ids(tok),
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def llava(size: int = 84) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>"})
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **{**VISION, "num_hidden_layers": 3}, image_size=size, patch_size=14
        ),
        text_config=transformers.LlamaConfig(**text_config(tok)),
        image_token_id=tok.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def internvl(size: int = 56) -> TinyModel:
    tok = tokenizer(
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    tokens_per_tile = (size // 14) ** 2 // 4
    processor = image_only(transformers.InternVLProcessor)(
        image_processor=transformers.GotOcr2ImageProcessorPil(
            size={"height": size, "width": size},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
        ),
        tokenizer=tok,
        image_seq_length=tokens_per_tile,
        chat_template=chat_template("<IMG_CONTEXT>\n"),
    )
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            **VISION, image_size=[size, size], patch_size=[14, 14]
        ),
        text_config=transformers.Qwen2Config(**text_config(tok)),
        image_token_id=tok.context_image_token_id,
        image_seq_length=tokens_per_tile,
        downsample_ratio=0.5,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], TinyModel]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "internvl": internvl,
}


def build(family: str) -> TinyModel:
    """A fresh random model, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
    return model.eval(), processor


@cache
def shared(family: str) -> TinyModel:
    """One model for all tests that leave it as it is."""
    return build(family)


def save(family: str, folder: Path) -> Path:
    model, processor = build(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
