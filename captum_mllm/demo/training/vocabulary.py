r"""The vocabulary, tokenizer and chat template that all demo models share."""

from __future__ import annotations

import re
from collections.abc import Sequence

import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from captum_mllm.datasets.captions import CAPTION_WORDS
from captum_mllm.demo import DEMO_PROMPTS

PAD, UNKNOWN = "<pad>", "<unk>"
START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

_WORD = r"\w+|[^\w\s]"
_SPECIAL_TOKENS = (PAD, UNKNOWN, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
_ROLES = ("system", "user", "assistant")

#: The words of each prompt, by style.
PROMPT_WORDS: dict[str, tuple[str, ...]] = {
    style: tuple(re.findall(_WORD, prompt.lower())) for style, prompt in DEMO_PROMPTS.items()
}

#: Every token; its place is its id.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys((*_SPECIAL_TOKENS, *_ROLES, *sum(PROMPT_WORDS.values(), ()), *CAPTION_WORDS))
)

_IDS = {token: index for index, token in enumerate(VOCABULARY)}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE_PART"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_template(image_part: str = f"{VISION_START}{IMAGE}{VISION_END}") -> str:
    r"""The chat template of a model.

    Args:
        image_part (str): What stands for an image before the processor has seen it.
            Default: one image token between the tokens that enclose it

    Returns:
        str: A Jinja template.
    """
    return CHAT_TEMPLATE.replace("IMAGE_PART", image_part)


def token_ids(tokens: Sequence[str]) -> list[int]:
    r"""Ids of tokens of the vocabulary.

    Args:
        tokens (Sequence[str]): Tokens of :data:`VOCABULARY`.

    Returns:
        list[int]: Their ids.

    Examples::

        >>> token_ids(["<pad>", "<unk>"])
        [0, 1]
    """
    return [_IDS[token] for token in tokens]


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
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "message_start_token": START,
            "start_image_token": VISION_START,
            "end_image_token": VISION_END,
            "image_token": IMAGE,
            "context_image_token": IMAGE,
            "video_token": VIDEO,
        },
    )
