r"""The model that is trained: a small vision tower and a projector before a language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_mllm.demo.language_model import merged_state
from captum_mllm.demo.training.architecture import IMAGE_MEAN, IMAGE_STD

GRID = 14
PATCH = 8
SIDE = GRID * PATCH
WIDTH = 96
IMAGE = "<image>"
LORA_SCALE = 2.0

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_image_token(tokenizer: Any) -> Any:
    r"""Give a tokenizer the placeholder of the image and the chat template, in place."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: Any) -> Any:
    r"""The processor, for images and text."""
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def build_config(text_config: Any, image_token_id: int) -> transformers.LlavaConfig:
    r"""The configuration of a LLaVA around a language model.

    Args:
        text_config (transformers.LlamaConfig): The language model's configuration.
        image_token_id (int): The index of the image's placeholder, the first free one.

    Returns:
        transformers.LlavaConfig: The configuration.
    """
    text = text_config.to_dict()
    for key in ("architectures", "_name_or_path", "_model_name_or_path", "dtype"):
        text.pop(key, None)
    text["vocab_size"] = image_token_id + 1
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=WIDTH,
        ),
        image_token_index=image_token_id,
        image_seq_length=GRID**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_model(language_model: Any, image_token_id: int) -> Any:
    r"""An untrained tower and projector before a language model, which gets a row for the image.

    Args:
        language_model (transformers.LlamaForCausalLM): The language model; its weights are copied.
        image_token_id (int): The index of the image's placeholder, the first free one.

    Returns:
        transformers.LlavaForConditionalGeneration: The model, in float32 and evaluation mode.
    """
    config = build_config(language_model.config, image_token_id)
    model = transformers.LlavaForConditionalGeneration(config)
    model.load_state_dict(merged_state(language_model, {}), strict=False)
    model.tie_weights()
    return model.eval()


def image_features(model: Any, pixel_values: Tensor) -> Tensor:
    r"""What the tower and the projector make of images, as the model itself computes it.

    Args:
        model (transformers.LlavaForConditionalGeneration): The model.
        pixel_values (Tensor): (B, 3, S, S).

    Returns:
        Tensor: (B, N, D), one row for each image token.
    """
    states = tower_states(model.model.vision_tower, pixel_values)
    features: Tensor = model.model.multi_modal_projector(states)
    return features


def tower_states(tower: Any, pixel_values: Tensor) -> Tensor:
    r"""What a CLIP tower says of images before its last layer, without the class token.

    Args:
        tower (transformers.CLIPVisionModel): The tower.
        pixel_values (Tensor): (B, 3, S, S).

    Returns:
        Tensor: (B, N, D), one row for each image token.
    """
    states: Tensor = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
    return states[:, 1:]


class LoRA(nn.Module):
    r"""A fixed linear map without bias and a trained change of low rank.

    Args:
        base (torch.nn.Linear): The fixed map.
        rank (int): Rank of the change.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base, self.scale = base, LORA_SCALE
        self.A = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.A), self.B)
        return F.linear(x, self.base.weight) + self.scale * change


def add_lora(model: Any, rank: int) -> None:
    r"""Put a low-rank change on every linear map of the decoder's layers, in place."""
    for layer in model.model.language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, LoRA(child, rank))


def text_logits(model: Any, states: Tensor, columns: Tensor | None = None) -> Tensor:
    r"""Logits of final states, of all tokens or of some."""
    weight = model.lm_head.weight
    return F.linear(states, weight if columns is None else weight[columns])
