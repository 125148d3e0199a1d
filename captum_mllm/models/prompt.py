"""The text that the model reads, from the chat template."""

from __future__ import annotations

import re
import warnings
from typing import Any

from captum_mllm.models.image_text_input import ImageTextInput, Messages, replace_texts

# Two characters for private use: no template trims them or turns them into capitals.
_SENTINEL = "\ue000{}\ue001"
_SENTINELS = re.compile("\ue000(\\d+)\ue001")


def render_prompt(processor: Any, inp: ImageTextInput) -> str:
    r"""The input's messages in the model's chat template, ready for an answer.

    Raises:
        ValueError: if the template does not have one placeholder for each picture.
    """
    prompt = _render(processor, inp.messages)
    placeholder = processor.image_token
    count = prompt.count(placeholder)
    if count != len(inp.images):
        raise ValueError(
            f"the prompt has {count} placeholder(s) {placeholder!r} for {len(inp.images)} "
            f"picture(s); does the chat template render parts of type 'image', and is the "
            f"placeholder absent from the text? The prompt is {prompt!r}"
        )
    return prompt


def text_spans(processor: Any, inp: ImageTextInput, prompt: str) -> tuple[tuple[int, int], ...]:
    r"""Where the texts of an input lie in its prompt.

    The template is rendered once more with sentinels in the place of the texts, so a text is found
    also where the template itself has the same words. A template may trim the texts, turn them
    into capitals, and leave some out.

    Args:
        processor (Any): the model's processor.
        inp (ImageTextInput): the input.
        prompt (str): what :func:`render_prompt` makes of it.

    Returns:
        tuple[tuple[int, int], ...]: start and end of each text in the order of the prompt, without
        spaces around it. All of the prompt, with a warning, if the template rewrote the texts.
    """
    sentinels = [_SENTINEL.format(index) for index in range(len(inp.texts))]
    rendered = _render(processor, replace_texts(inp.messages, sentinels))
    # What the template writes, and between it the indices of the texts.
    written = _SENTINELS.split(rendered)
    pattern = "".join(
        rf"\s*((?i:{re.escape(inp.texts[int(part)].strip())}))\s*" if is_text else re.escape(part)
        for part, is_text in zip(written, [False, True] * len(written))
    )
    found = re.fullmatch(pattern, prompt)
    if found is None:
        warnings.warn(
            "the chat template rewrites the texts of the messages, so the user's words cannot be "
            "told from the template's; all of the prompt is taken for them",
            stacklevel=4,
        )
        return ((0, len(prompt)),)
    return tuple(found.span(group + 1) for group in range(len(written) // 2))


def special_tokens_option(tokenizer: Any, prompt: str) -> dict[str, bool]:
    r"""As :meth:`transformers.ProcessorMixin.apply_chat_template` has it: a prompt in which the
    template wrote the token of the beginning does not get a second one."""
    begins = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begins else {}


def _render(processor: Any, messages: Messages) -> str:
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
