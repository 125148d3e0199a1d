"""Tiny random models of every family of the table, with real processors, built offline."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers as T
from transformers import PreTrainedTokenizerFast

from captum_mllm.models.loading import image_only
from tests.models import tiny_later_families as later
from tests.models import tiny_models
from tests.models.tiny_models import (
    QWEN_SPECIAL,
    VISION,
    TinyModel,
    chat_template,
    mrope,
    qwen_ids,
    qwen_processor,
    qwen_vision,
    text_config,
    tokenizer,
)

# What the processors of some families need of packages that are not installed with this one.
NEEDS = {
    **dict.fromkeys(("pixtral", "mistral3", "llama4", "cohere2_vision", "gemma4"), "torchvision"),
    **dict.fromkeys(("kimi_k25", "lfm2_vl"), "torchvision"),
    "smolvlm": "num2words",
}
PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}


def siglip(size: int, **changes: Any) -> T.SiglipVisionConfig:
    settings = {**VISION, "vision_use_head": False, "patch_size": 14, **changes}
    return T.SiglipVisionConfig(**settings, image_size=size)


def clip(size: int) -> T.CLIPVisionConfig:
    return T.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}, image_size=size, patch_size=14)


def ids(tok: PreTrainedTokenizerFast, **names: str) -> dict[str, int]:
    return {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen3_processor() -> Any:
    return qwen_processor(T.Qwen3VLProcessor, 16)


def qwen3_vision(**changes: Any) -> dict[str, Any]:
    return qwen_vision(**{"patch_size": 16, "num_position_embeddings": 64, **changes})


EXPERTS = dict(
    moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
)
HYBRID = dict(
    num_hidden_layers=4,
    head_dim=16,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    layer_types=["linear_attention"] * 3 + ["full_attention"],
)


def qwen3_vl_moe() -> TinyModel:
    processor = qwen3_processor()
    tok = processor.tokenizer
    rope = mrope(1, 1, 2, mrope_interleaved=True)
    config = T.Qwen3VLMoeConfig(
        text_config=text_config(tok, head_dim=8, rope_parameters=rope, **EXPERTS),
        vision_config=qwen3_vision(depth=3, deepstack_visual_indexes=[0, 1]),
        **qwen_ids(tok),
    )
    return T.Qwen3VLMoeForConditionalGeneration(config), processor


def qwen3_5() -> TinyModel:
    processor = qwen3_processor()
    tok = processor.tokenizer
    rope = mrope(1, 1, 2, mrope_interleaved=True, partial_rotary_factor=0.5)
    config = T.Qwen3_5Config(
        text_config=text_config(tok, rope_parameters=rope, **HYBRID),
        vision_config=qwen3_vision(),
        **qwen_ids(tok),
    )
    return T.Qwen3_5ForConditionalGeneration(config), processor


def qwen3_5_moe() -> TinyModel:
    processor = qwen3_processor()
    tok = processor.tokenizer
    rope = mrope(1, 1, 2, mrope_interleaved=True, partial_rotary_factor=0.5)
    experts = dict(EXPERTS, shared_expert_intermediate_size=32)
    config = T.Qwen3_5MoeConfig(
        text_config=text_config(tok, rope_parameters=rope, **HYBRID, **experts),
        vision_config=qwen3_vision(),
        **qwen_ids(tok),
    )
    return T.Qwen3_5MoeForConditionalGeneration(config), processor


GLM_SPECIAL = dict(
    image_token_id="<|image|>",
    video_token_id="<|video|>",
    image_start_token_id="<|begin_of_image|>",
    image_end_token_id="<|end_of_image|>",
    video_start_token_id="<|begin_of_video|>",
    video_end_token_id="<|end_of_video|>",
)
GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"


def glm_processor(name: str = "Glm4v") -> Any:
    return image_only(getattr(T, f"{name}Processor"))(
        image_processor=getattr(T, f"{name}ImageProcessorPil")(
            size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4000}
        ),
        tokenizer=tokenizer(special=tuple(GLM_SPECIAL.values())),
        chat_template=chat_template(GLM_IMAGE),
    )


def glm_vision(**changes: Any) -> dict[str, Any]:
    settings = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=32,
        image_size=112,
        patch_size=14,
    )
    return {**settings, **changes}


def glm4v() -> TinyModel:
    processor = glm_processor()
    tok = processor.tokenizer
    rope = mrope(1, 1, partial_rotary_factor=0.5)
    config = T.Glm4vConfig(
        text_config=text_config(tok, rope_parameters=rope),
        vision_config=glm_vision(),
        **ids(tok, **GLM_SPECIAL),
    )
    return T.Glm4vForConditionalGeneration(config), processor


def glm46v() -> TinyModel:
    processor = glm_processor("Glm46V")
    tok = processor.tokenizer
    rope = mrope(1, 1, partial_rotary_factor=0.5)
    config = T.Glm46VConfig(
        text_config=dict(text_config(tok, rope_parameters=rope), model_type="glm4v_text"),
        vision_config=dict(glm_vision(), model_type="glm4v_vision"),
        **ids(tok, **GLM_SPECIAL),
    )
    return T.Glm46VForConditionalGeneration(config), processor


def glm4v_moe() -> TinyModel:
    processor = glm_processor()
    tok = processor.tokenizer
    rope = mrope(1, 1, 2, partial_rotary_factor=1.0)
    experts = dict(
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    )
    config = T.Glm4vMoeConfig(
        text_config=text_config(tok, rope_parameters=rope, head_dim=8, **experts),
        vision_config=glm_vision(),
        **ids(tok, **GLM_SPECIAL),
    )
    return T.Glm4vMoeForConditionalGeneration(config), processor


def glm_ocr() -> TinyModel:
    processor = glm_processor("Glm46V")
    tok = processor.tokenizer
    rope = mrope(1, 1, 2, partial_rotary_factor=1.0)
    config = T.GlmOcrConfig(
        text_config=text_config(tok, rope_parameters=rope, head_dim=8),
        vision_config=glm_vision(),
        **ids(tok, **GLM_SPECIAL),
    )
    return T.GlmOcrForConditionalGeneration(config), processor


def paddleocr_vl() -> TinyModel:
    tok = tokenizer(named={"image_token": "<|IMAGE_PLACEHOLDER|>"}, special=QWEN_SPECIAL)
    processor = T.PaddleOCRVLProcessor(
        image_processor=T.PaddleOCRVLImageProcessorPil(size=dict(PIXELS)),
        tokenizer=tok,
        chat_template=chat_template("<|vision_start|><|IMAGE_PLACEHOLDER|><|vision_end|>"),
    )
    config = T.PaddleOCRVLConfig(
        text_config=text_config(tok, head_dim=8, rope_parameters=mrope(1, 1, 2)),
        vision_config=dict(VISION, image_size=112, patch_size=14),
        **{**qwen_ids(tok), "image_token_id": tok.image_token_id},
    )
    return T.PaddleOCRVLForConditionalGeneration(config), processor


PIXTRAL_SPECIAL = ("[IMG_BREAK]", "[IMG_END]")


def pixtral_processor(patch: int, merge: int, longest: int) -> Any:
    return T.PixtralProcessor(
        image_processor=T.PixtralImageProcessorPil(
            size={"longest_edge": longest}, patch_size={"height": patch, "width": patch}
        ),
        tokenizer=tokenizer(named={"image_token": "[IMG]"}, special=PIXTRAL_SPECIAL),
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=chat_template("[IMG]"),
    )


def pixtral() -> TinyModel:
    processor = pixtral_processor(16, 1, 224)
    tok = processor.tokenizer
    config = T.LlavaConfig(
        vision_config=T.PixtralVisionConfig(**VISION, image_size=224, patch_size=16),
        text_config=T.MistralConfig(**text_config(tok, head_dim=8)),
        image_token_id=tok.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return T.LlavaForConditionalGeneration(config), processor


def mistral3() -> TinyModel:
    processor = pixtral_processor(14, 2, 448)
    tok = processor.tokenizer
    config = T.Mistral3Config(
        vision_config=T.PixtralVisionConfig(**VISION, image_size=448, patch_size=14),
        text_config=T.MistralConfig(**text_config(tok, head_dim=8)),
        image_token_index=tok.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return T.Mistral3ForConditionalGeneration(config), processor


def lighton_ocr() -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        }
    )
    processor = T.LightOnOcrProcessor(
        image_processor=T.PixtralImageProcessorPil(
            size={"longest_edge": 448}, patch_size={"height": 28, "width": 28}
        ),
        tokenizer=tok,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=chat_template("<|image_pad|>"),
    )
    config = T.LightOnOcrConfig(
        vision_config=T.PixtralVisionConfig(**VISION, image_size=448, patch_size=14),
        text_config=T.Qwen3Config(**text_config(tok, head_dim=8)),
        image_token_id=tok.image_token_id,
        spatial_merge_size=2,
    )
    return T.LightOnOcrForConditionalGeneration(config), processor


def llava_next(size: int = 56) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>"})
    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pins = [[rows * size, columns * size] for rows, columns in shapes]
    processor = T.LlavaNextProcessor(
        image_processor=T.LlavaNextImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=pins,
        ),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )
    config = T.LlavaNextConfig(
        vision_config=clip(size),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_id=tok.image_token_id,
        image_grid_pinpoints=pins,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return T.LlavaNextForConditionalGeneration(config), processor


def llava_onevision(size: int = 56, limit: int = 9) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    pins = [[rows * size, columns * size] for rows in range(1, 5) for columns in range(1, 5)]
    processor = image_only(T.LlavaOnevisionProcessor)(
        image_processor=T.LlavaOnevisionImageProcessorPil(
            size={"height": size, "width": size}, image_grid_pinpoints=pins
        ),
        tokenizer=tok,
        num_image_tokens=(size // 14) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{limit}",
        chat_template=chat_template("<image>\n"),
    )
    config = T.LlavaOnevisionConfig(
        vision_config=siglip(size),
        text_config=T.Qwen2Config(**text_config(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{limit}",
    )
    return T.LlavaOnevisionForConditionalGeneration(config), processor


def llava_siglip(size: int = 84) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>"})
    processor = T.LlavaProcessor(
        image_processor=T.SiglipImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=chat_template("<image>\n"),
    )
    config = T.LlavaConfig(
        vision_config=siglip(size),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_id=tok.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return T.LlavaForConditionalGeneration(config), processor


def vipllava(size: int = 84) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>"})
    processor = T.LlavaProcessor(
        image_processor=T.CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        ),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )
    config = T.VipLlavaConfig(
        vision_config=clip(size),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_index=tok.image_token_id,
        vision_feature_layers=[-2, -1],
    )
    return T.VipLlavaForConditionalGeneration(config), processor


def paligemma(size: int = 56, second: bool = False) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>"})
    image_processor = T.SiglipImageProcessorPil(size={"height": size, "width": size})
    image_processor.image_seq_length = (size // 14) ** 2
    processor = T.PaliGemmaProcessor(
        image_processor=image_processor, tokenizer=tok, chat_template=chat_template("<image>")
    )
    text = text_config(tok, head_dim=8)
    config = T.PaliGemmaConfig(
        vision_config=siglip(size),
        text_config=(
            T.Gemma2Config(**text, sliding_window=4096, final_logit_softcapping=0.2)
            if second
            else T.GemmaConfig(**text)
        ),
        image_token_index=tok.image_token_id,
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tok),
    )
    return T.PaliGemmaForConditionalGeneration(config), processor


def paligemma2() -> TinyModel:
    return paligemma(second=True)


def gemma3(size: int = 112) -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        }
    )
    processor = T.Gemma3Processor(
        image_processor=T.Gemma3ImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        image_seq_length=16,
        chat_template=chat_template("<start_of_image>"),
    )
    config = T.Gemma3Config(
        vision_config=siglip(size),
        text_config=T.Gemma3TextConfig(
            **text_config(
                tok,
                head_dim=8,
                sliding_window=64,
                final_logit_softcapping=0.2,
                layer_types=["sliding_attention", "full_attention"],
            )
        ),
        image_token_index=tok.image_token_id,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        mm_tokens_per_image=16,
    )
    model = T.Gemma3ForConditionalGeneration(config)
    # It is made of zeros, with which no image would be seen.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return model, processor


def gemma4() -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        special=("<|video|>",),
    )
    processor = T.Gemma4Processor(
        feature_extractor=T.Gemma4AudioFeatureExtractor(),
        image_processor=T.Gemma4ImageProcessorPil(
            patch_size=4, max_soft_tokens=70, pooling_kernel_size=3
        ),
        tokenizer=tok,
        video_processor=T.Gemma4VideoProcessor(),
        chat_template=chat_template("<|image|>"),
    )
    text = text_config(
        tok,
        head_dim=8,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tok),
        final_logit_softcapping=0.2,
        use_bidirectional_attention="vision",
    )
    config = T.Gemma4Config(
        text_config=text,
        vision_config=dict(
            VISION,
            num_key_value_heads=4,
            head_dim=8,
            patch_size=4,
            pooling_kernel_size=3,
            position_embedding_size=4096,
        ),
        audio_config=None,
        **ids(
            tok,
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            audio_token_id="<|audio|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
        ),
    )
    config.audio_config = None
    return T.Gemma4ForConditionalGeneration(config), processor


def deepseek_vl(size: int = 56) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image_placeholder>"})
    processor = T.DeepseekVLProcessor(
        image_processor=T.DeepseekVLImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        num_image_tokens=(size // 14) ** 2,
        chat_template=chat_template("<image_placeholder>"),
    )
    config = T.DeepseekVLConfig(
        vision_config=siglip(size),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_id=tok.image_token_id,
    )
    return T.DeepseekVLForConditionalGeneration(config), processor


def split_processor(processor_class: Any, image_processor_class: Any, size: int) -> Any:
    cells = tuple(f"<row_{row + 1}_col_{column + 1}>" for row in range(8) for column in range(8))
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    return image_only(processor_class)(
        image_processor=image_processor_class(
            size={"longest_edge": 2 * size}, max_image_size={"longest_edge": size}
        ),
        tokenizer=tokenizer(special=special + cells),
        image_seq_len=(size // 14) ** 2 // 4,
        chat_template=chat_template("<image>"),
    )


def split_config(config_class: Any, tok: PreTrainedTokenizerFast, size: int) -> Any:
    return config_class(
        vision_config=dict(VISION, image_size=size, patch_size=14),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tok.pad_token_id,
    )


def idefics3(size: int = 56) -> TinyModel:
    processor = split_processor(T.Idefics3Processor, T.Idefics3ImageProcessorPil, size)
    config = split_config(T.Idefics3Config, processor.tokenizer, size)
    return T.Idefics3ForConditionalGeneration(config), processor


def smolvlm(size: int = 56) -> TinyModel:
    processor = split_processor(T.SmolVLMProcessor, T.SmolVLMImageProcessorPil, size)
    config = split_config(T.SmolVLMConfig, processor.tokenizer, size)
    return T.SmolVLMForConditionalGeneration(config), processor


def ovis2(size: int = 56) -> TinyModel:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tok = tokenizer(special=("<image>", "<IMG_ATOM>", *marks))
    processor = T.Ovis2Processor(
        image_processor=T.Ovis2ImageProcessorPil(
            size={"height": size, "width": size}, crop_to_patches=True, max_patches=9
        ),
        tokenizer=tok,
        image_seq_length=(size // 14) ** 2 // 4,
        chat_template=chat_template("<image>"),
    )
    config = T.Ovis2Config(
        vision_config=dict(
            VISION,
            image_size=size,
            patch_size=14,
            vocab_size=64,
            hidden_stride=2,
            num_visual_indicator_tokens=5,
        ),
        text_config=T.Qwen2Config(**text_config(tok)),
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tok.convert_tokens_to_ids(list(marks)),
        vocab_size=len(tok),
        hidden_size=32,
    )
    return T.Ovis2ForConditionalGeneration(config), processor


def aya_vision(size: int = 56) -> TinyModel:
    special = (
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        "TILE",
    )
    tok = tokenizer(special=special)
    processor = T.AyaVisionProcessor(
        image_processor=T.GotOcr2ImageProcessorPil(
            size={"height": size, "width": size},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
        ),
        tokenizer=tok,
        patch_size=14,
        img_size=size,
        downsample_factor=2,
        chat_template=chat_template("<image>"),
    )
    config = T.AyaVisionConfig(
        vision_config=siglip(size),
        text_config=T.Cohere2Config(**text_config(tok, sliding_window=4096, head_dim=8)),
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    model = T.AyaVisionForConditionalGeneration(config)
    # Its random projection hardly tells a patch from what other patches see of it.
    for name, parameter in model.model.vision_tower.named_parameters():
        if name.endswith("self_attn.out_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.002)
    return model, processor


def cohere2_vision(size: int = 32) -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        }
    )
    processor = T.Cohere2VisionProcessor(
        image_processor=T.Cohere2VisionImageProcessor(
            size={"height": size, "width": size},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
            # The tokens of a tile along a side, as many as a patch has pixels there.
            patch_size=4,
        ),
        tokenizer=tok,
        chat_template=chat_template("<|IMG_PATCH|>"),
    )
    config = T.Cohere2VisionConfig(
        vision_config=siglip(size, patch_size=4),
        text_config=T.Cohere2Config(**text_config(tok, sliding_window=4096, head_dim=8)),
        image_token_id=tok.image_token_id,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return T.Cohere2VisionForConditionalGeneration(config), processor


def llama4(size: int = 56) -> TinyModel:
    special = (
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    tok = tokenizer(special=special)
    processor = T.Llama4Processor(
        image_processor=T.Llama4ImageProcessor(
            size={"height": size, "width": size}, max_patches=6, resize_to_max_canvas=False
        ),
        tokenizer=tok,
        patch_size=14,
        pixel_shuffle_ratio=0.5,
        chat_template=chat_template("<|image|>"),
    )
    config = T.Llama4Config(
        vision_config=dict(
            VISION,
            intermediate_size=128,
            image_size=size,
            patch_size=14,
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        text_config=text_config(
            tok, head_dim=8, intermediate_size_mlp=64, num_local_experts=2, num_experts_per_tok=1
        ),
        **ids(
            tok,
            image_token_index="<|patch|>",
            boi_token_index="<|image_start|>",
            eoi_token_index="<|image_end|>",
        ),
    )
    return T.Llama4ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], TinyModel]] = {
    **tiny_models.FAMILIES,
    **{
        make.__name__: make
        for make in (
            qwen3_vl_moe,
            qwen3_5,
            qwen3_5_moe,
            glm4v,
            glm4v_moe,
            glm46v,
            glm_ocr,
            paddleocr_vl,
            pixtral,
            mistral3,
            lighton_ocr,
            llava_next,
            llava_onevision,
            llava_siglip,
            vipllava,
            paligemma,
            paligemma2,
            gemma3,
            gemma4,
            deepseek_vl,
            idefics3,
            smolvlm,
            ovis2,
            aya_vision,
            cohere2_vision,
            llama4,
            later.exaone4_5,
            later.hyperclovax_vision_v2,
            later.kimi_k25,
            later.llava_next_video,
            later.janus,
            later.got_ocr2,
            later.minicpmv4_6,
            later.lfm2_vl,
        )
    },
}


def available(family: str) -> bool:
    """Whether what its processor needs is installed."""
    return family not in NEEDS or find_spec(NEEDS[family]) is not None


def build(family: str) -> TinyModel:
    """A fresh random model, the same at every call."""
    if family in NEEDS:
        pytest.importorskip(NEEDS[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
    return model.eval(), processor


@cache
def shared(family: str) -> TinyModel:
    """One model for all tests that leave it as it is."""
    return build(family)
