"""Tiny random models of real architectures, with real processors, built offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def byte_level(texts: Sequence[str], vocab_size: int, special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer: it encodes any text without loss."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def tokenizer(
    named: dict[str, str] | None = None, special: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(CORPUS, 400, ["<pad>", "<s>", "</s>"]),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=dict(named or {}),
    )
    wrapped.add_tokens(list(special), special_tokens=True)
    return wrapped


def chat_template(image: str, video: str = "") -> str:
    return (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'video' %}"
        + video
        + "{% else %}{{ part['text'] }}{% endif %}"
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


def qwen_ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tok.convert_tokens_to_ids(list(QWEN_SPECIAL))))


def mrope(*section: int, **changes: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0}
    return {**rope, **changes}


def qwen_vision(**changes: Any) -> dict[str, Any]:
    settings = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32)
    return {**settings, **changes}


def qwen_processor(kind: Any, patch: int = 14) -> ProcessorMixin:
    shortest = 4 * patch**2
    return image_only(kind)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": shortest, "longest_edge": 1280 * shortest}, patch_size=patch
        ),
        tokenizer=tokenizer(special=QWEN_SPECIAL),
        chat_template=chat_template(QWEN_IMAGE),
    )


def qwen2_vl() -> TinyModel:
    processor = qwen_processor(transformers.Qwen2VLProcessor)
    tok = processor.tokenizer
    config = transformers.Qwen2VLConfig(
        text_config=text_config(tok, rope_parameters=mrope(1, 1, 2)),
        vision_config=dict(
            depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=14
        ),
        **qwen_ids(tok),
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> TinyModel:
    processor = qwen_processor(transformers.Qwen2_5_VLProcessor)
    tok = processor.tokenizer
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(tok, rope_parameters=mrope(1, 1, 2)),
        vision_config=qwen_vision(patch_size=14, window_size=112, fullatt_block_indexes=[1]),
        **qwen_ids(tok),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> TinyModel:
    processor = qwen_processor(transformers.Qwen3VLProcessor, 16)
    tok = processor.tokenizer
    config = transformers.Qwen3VLConfig(
        text_config=text_config(
            tok, head_dim=8, rope_parameters=mrope(1, 1, 2, mrope_interleaved=True)
        ),
        vision_config=qwen_vision(
            depth=3, patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0, 1]
        ),
        **qwen_ids(tok),
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
