r"""A tiny Qwen2-VL: configuration, word-level tokenizer, processor and chat template.

Every part is a class of transformers, so the demo model takes the same way through this library as
a model of billions of parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from captum_mllm.datasets.captions import CAPTION_WORDS
from captum_mllm.models.processors import image_only

PATCH_SIZE = 8

#: Side, in pixels, to which the processor scales a square picture: a grid of 14 x 14 image tokens.
IMAGE_SIZE = 112

PAD, UNKNOWN = "<pad>", "<unk>"
START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

_SPECIAL_TOKENS = (PAD, UNKNOWN, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
_PROMPT_WORDS = ("system", "user", "assistant", "describe", "the", "image")

#: Every token; its place is its id.
VOCABULARY: tuple[str, ...] = (*_SPECIAL_TOKENS, *_PROMPT_WORDS, *CAPTION_WORDS)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def token_ids(tokens: tuple[str, ...] | list[str]) -> list[int]:
    r"""Ids of tokens of the vocabulary.

    Args:
        tokens (list[str]): Tokens of :data:`VOCABULARY`.

    Returns:
        list[int]: Their ids.

    Examples::

        >>> token_ids(["<pad>", "<unk>"])
        [0, 1]
    """
    return [_IDS[token] for token in tokens]


_IDS = {token: index for index, token in enumerate(VOCABULARY)}


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    r"""A tokenizer whose tokens are whole words and punctuation marks, in lower case.

    Returns:
        transformers.PreTrainedTokenizerFast: The tokenizer. It decodes to words joined by spaces;
        words that it does not know become ``<unk>``.

    Examples::

        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("Describe the image.").input_ids)
        'describe the image .'
    """
    backend = Tokenizer(WordLevel(_IDS, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE, VIDEO],
    )


def build_processor() -> Any:
    r"""The processor of the demo model: pictures of any size become at most 14 x 14 image tokens.

    Returns:
        transformers.ProcessorMixin: An image-only ``Qwen2VLProcessor``.
    """
    image_processor = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": (4 * PATCH_SIZE) ** 2, "longest_edge": IMAGE_SIZE**2},
        patch_size=PATCH_SIZE,
        merge_size=1,
    )
    return image_only(transformers.Qwen2VLProcessor)(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> transformers.Qwen2VLConfig:
    r"""The configuration: 3 decoder layers of width 128, 3 vision blocks of width 96.

    Returns:
        transformers.Qwen2VLConfig: About 0.95 million parameters.
    """
    start, end, pad = token_ids([START, END, PAD])
    image, video, vision_start, vision_end = token_ids([IMAGE, VIDEO, VISION_START, VISION_END])
    width = 128
    return transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": width,
            "intermediate_size": 352,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            # Half of the head dimension (16) is shared out to time, height and width.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": width,
            "num_heads": 4,
            "mlp_ratio": 3,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
            "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=True,
    )


def build_model(seed: int = 0) -> transformers.Qwen2VLForConditionalGeneration:
    r"""An untrained demo model.

    Args:
        seed (int): Seeds the initial weights. Default: 0

    Returns:
        transformers.Qwen2VLForConditionalGeneration: The model, in float32 and evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Qwen2VLForConditionalGeneration(build_config())
    start, end, pad = token_ids([START, END, PAD])
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        do_sample=False,
        max_new_tokens=32,
    )
    return model.eval()
