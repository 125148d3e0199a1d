"""Tiny random models of the families that came to the table later, with real processors."""

from __future__ import annotations

from typing import Any

import torch
import transformers as T

from captum_mllm.models.loading import image_only
from tests.models.tiny_models import (
    QWEN_IMAGE,
    QWEN_SPECIAL,
    VISION,
    TinyModel,
    chat_template,
    text_config,
    tokenizer,
)

PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
QWEN_VISION = dict(
    depth=2,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    out_hidden_size=32,
    patch_size=14,
    window_size=112,
    fullatt_block_indexes=[1],
)


def _qwen_like(processor_class: Any) -> Any:
    return image_only(processor_class)(
        image_processor=T.Qwen2VLImageProcessorPil(size=dict(PIXELS)),
        tokenizer=tokenizer(special=QWEN_SPECIAL),
        chat_template=chat_template(QWEN_IMAGE),
    )


def _placeholders(processor: Any) -> dict[str, int]:
    return dict(image_token_id=processor.image_token_id, video_token_id=processor.video_token_id)


def exaone4_5() -> TinyModel:
    processor = _qwen_like(T.Exaone4_5_Processor)
    config = T.Exaone4_5_Config(
        text_config=T.Exaone4Config(**text_config(processor.tokenizer), sliding_window=4096),
        vision_config=dict(QWEN_VISION, num_key_value_heads=2),
        **_placeholders(processor),
    )
    return T.Exaone4_5_ForConditionalGeneration(config), processor


def hyperclovax_vision_v2() -> TinyModel:
    processor = _qwen_like(T.HyperCLOVAXVisionV2Processor)
    config = T.HyperCLOVAXVisionV2Config(
        text_config=dict(text_config(processor.tokenizer), model_type="hyperclovax"),
        vision_config=dict(QWEN_VISION, model_type="qwen2_5_vl_vision"),
        **_placeholders(processor),
    )
    return T.HyperCLOVAXVisionV2ForConditionalGeneration(config), processor


def llava_next_video(size: int = 56) -> TinyModel:
    tok = tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pins = [[rows * size, columns * size] for rows, columns in shapes]
    processor = image_only(T.LlavaNextVideoProcessor)(
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
    vision = T.CLIPVisionConfig(
        **{**VISION, "num_hidden_layers": 3}, image_size=size, patch_size=14
    )
    config = T.LlavaNextVideoConfig(
        vision_config=vision,
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=pins,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return T.LlavaNextVideoForConditionalGeneration(config), processor


def got_ocr2(size: int = 128) -> TinyModel:
    tok = tokenizer(special=("<img>", "</img>", "<imgpad>", "<|im_start|>", "<|im_end|>"))
    processor = T.GotOcr2Processor(
        image_processor=T.GotOcr2ImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        chat_template=chat_template("<img><imgpad></img>"),
    )
    config = T.GotOcr2Config(
        vision_config=dict(
            hidden_size=16,
            mlp_dim=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=size,
            patch_size=2,
            output_channels=16,
            window_size=4,
            # Attention of all patches to each other would be slow: they are many, since the
            # processor writes 256 tokens of 4 x 4 patches.
            global_attn_indexes=[],
            initializer_range=0.02,
        ),
        text_config=T.Qwen2Config(**text_config(tok)),
        image_token_index=tok.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=256,
    )
    model = T.GotOcr2ForConditionalGeneration(config)
    # Random kernels of 3 x 3 see as much of the next cells as of their own.
    for name, parameter in model.named_parameters():
        if "conv_upsampler" in name:
            with torch.no_grad():
                parameter[:, :, 0] = parameter[..., 0] = 0
    return model, processor


def janus(size: int = 56) -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        }
    )
    processor = T.JanusProcessor(
        image_processor=T.JanusImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        num_image_tokens=(size // 14) ** 2,
        chat_template=chat_template("<image_placeholder>"),
    )
    config = T.JanusConfig(
        vision_config=dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            mlp_ratio=2.0,
            image_size=size,
            patch_size=14,
            projection_dim=32,
            num_image_tokens=(size // 14) ** 2,
        ),
        vq_config=dict(
            base_channels=32,
            embed_dim=8,
            num_embeddings=16,
            latent_channels=8,
            projection_dim=32,
            image_token_embed_dim=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
        ),
        text_config=T.LlamaConfig(**text_config(tok)),
        image_token_id=tok.image_token_id,
    )
    return T.JanusForConditionalGeneration(config), processor


MINICPM_NAMES = dict(
    image_token="<|image_pad|>",
    video_token="<|video_pad|>",
    image_start_token="<image>",
    image_end_token="</image>",
    slice_start_token="<slice>",
    slice_end_token="</slice>",
    image_id_start_token="<image_id>",
    image_id_end_token="</image_id>",
)


def minicpmv4_6(size: int = 64) -> TinyModel:
    tok = tokenizer(named=dict(MINICPM_NAMES))
    processor = image_only(T.MiniCPMV4_6Processor)(
        image_processor=T.MiniCPMV4_6ImageProcessorPil(
            scale_resolution=size, patch_size=4, max_slice_nums=9
        ),
        tokenizer=tok,
        chat_template=chat_template("<|image_pad|>"),
    )
    config = T.MiniCPMV4_6Config(
        text_config=T.Qwen3Config(**text_config(tok, head_dim=8)),
        vision_config=dict(VISION, image_size=size, patch_size=4, insert_layer_id=0),
        insert_layer_id=0,
        image_size=size,
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
    )
    return T.MiniCPMV4_6ForConditionalGeneration(config), processor


def lfm2_vl(size: int = 64) -> TinyModel:
    tok = tokenizer(
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        special=tuple(
            f"<|img_row_{row + 1}_col_{column + 1}|>" for row in range(9) for column in range(9)
        ),
    )
    processor = T.Lfm2VlProcessor(
        image_processor=T.Lfm2VlImageProcessor(
            tile_size=size,
            encoder_patch_size=8,
            min_image_tokens=4,
            max_image_tokens=16,
            size={"height": size, "width": size},
        ),
        tokenizer=tok,
        chat_template=chat_template("<image>"),
    )
    config = T.Lfm2VlConfig(
        vision_config=T.Siglip2VisionConfig(
            **VISION, patch_size=8, num_patches=64, vision_use_head=False
        ),
        text_config=T.Lfm2Config(
            **text_config(
                tok,
                num_hidden_layers=4,
                layer_types=["conv", "full_attention", "conv", "full_attention"],
                block_auto_adjust_ff_dim=False,
            )
        ),
        image_token_id=tok.image_token_id,
        projector_hidden_size=32,
    )
    return T.Lfm2VlForConditionalGeneration(config), processor


def kimi_k25() -> TinyModel:
    tok = tokenizer(named={"image_token": "<|media_pad|>", "video_token": "<|video_pad|>"})
    processor = T.Kimi_K25Processor(
        image_processor=T.Kimi_K25ImageProcessor(size={"max_height": 448, "max_width": 448}),
        tokenizer=tok,
        video_processor=T.Kimi_K25VideoProcessor(),
        chat_template=chat_template("<|media_pad|>"),
    )
    text = text_config(
        tok,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    )
    config = T.Kimi_K25Config(
        text_config=T.DeepseekV3Config(**text),
        vision_config=dict(VISION, patch_size=14, pos_emb_height=16, pos_emb_width=16),
        projection_hidden_size=32,
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
        tie_word_embeddings=False,
    )
    return T.Kimi_K25ForConditionalGeneration(config), processor


def mllama(size: int = 56) -> TinyModel:
    tok = tokenizer(special=("<|image|>", "<|python_tag|>"))
    processor = T.MllamaProcessor(
        image_processor=T.MllamaImageProcessorPil(size={"height": size, "width": size}),
        tokenizer=tok,
        chat_template=chat_template("<|image|>"),
    )
    config = T.MllamaConfig(
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=4,
            image_size=size,
            patch_size=14,
            max_num_tiles=4,
            vision_output_dim=64,
            intermediate_layers_indices=[1],
        ),
        text_config=text_config(
            tok,
            num_hidden_layers=4,
            cross_attention_layers=[1, 3],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        image_token_index=tok.convert_tokens_to_ids("<|image|>"),
    )
    model = T.MllamaForConditionalGeneration(config)
    # The gates are closed at first, so that no image would be seen.
    for name, parameter in model.named_parameters():
        if "cross_attn" in name and name.endswith("gate"):
            torch.nn.init.constant_(parameter, 1.0)
    return model, processor
